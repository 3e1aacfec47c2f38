"""Texts on which tokenizers part ways."""

from __future__ import annotations

from tokenizers import Tokenizer

from launcher.prepare.young_characters import without_young_characters

TEXTS = (
    "",
    " ",
    "  two   spaces    and more     ",
    "\t\ttabs\tand\n\nnewlines\r\n\r\nof both\rkinds\n",
    "\n" * 50,
    " " * 300 + "x",
    "trailing space ",
    "\x00\x01\x02\x1f\x7f\x80\x9f control",
    "\ufeffa mark at the beginning, \ufeffand inside",
    "zero\u200bwidth\u200c \u200djoiner \u2060 \u00ad soft hyphen",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇨🇳🇩🇪 ☺️ 1️⃣",
    "é è ü ñ å ç composed; e\u0301 e\u0300 u\u0308 n\u0303 a\u030a c\u0327 not",
    "ﬁ ﬂ ½ ² ℃ Ⅷ ㎏ ㈱ ﷺ",
    "ＦＵＬＬ　ｗｉｄｔｈ　１２３，。！ and half ｱｲｳ",
    "𠀀𠀁𪜀𫝀𫠠𬺰𮯠𰀀𱍐 rare ideographs 㐀䶵豈",
    "𫞩𬭼𮧵𲎰 \U000323b0 newer than most tables",
    "한국어 텍스트 ㄱㄴㄷ \u1100\u1161\u11a8",
    "ひらがな カタカナ が か\u3099 々〆〇",
    "العربية مع تشكيل: كِتَابٌ ١٢٣",
    "עברית עם ניקוד: שָׁלוֹם",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में क्ष त्र ज्ञ",
    "தமிழ் മലയാളം ខ្មែរ བོད་ཡིག မြန်မာ",
    "\u202eright to left\u202c \u200f\u200e \u2066isolate\u2069",
    "a" * 101,
    "a" * 10_000,
    "法" * 3_000,
    "ab" * 60 + " " + "Ab" * 60,
    "1234567890" * 30,
    "1,234.56 -7 +8 1e-9 0x1F 3.14.15 ٣",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "def f(x):\n    if x:\n        return [x ** 2 for _ in range(3)]  # ok\n",
    "line\u2028separator\u2029and\u0085next line\x0bvertical\x0cfeed",
    "İstanbul ıI iİ ǅ ẞß ŉ ΰ ſ K Å",
    "ΑΒΓ αβγς Привет, ПРИВЕТ! Ёё Йй",
    "CamelCase snake_case kebab-case SCREAMING it's don't l'heure O’Neil 'quoted'",
    "“curly” ‘quotes’ — dashes – and… ellipsis · • † ‡ § ¶",
    "«guillemets» 「角括弧」『』【】《》〈〉（）",
    "\ue000\uf8ff private \ufffd replaced \ufffe\uffff none",
    "\U0001f9ff\U0001fae8 \U0001fadf new pictures \U00010ffd",
    "∑∫√∞≠≤≥ 𝒜𝓑𝔾 x²+y²=z² ½+¼",
    "$100 €200 ¥300 ₿ 50% #tag @user a&b <b>html</b> &amp;",
    "##ing ## # ### ##人 [UNK]## Ġ Ġthe ▁ ▁the </w> @@",
    "中文English混排123，test测试。",
    "　全角空格　开头",
    "人民法院！？！？。。。，，，",
    "a\u0301\u0301\u0301\u0301\u0301 stacked m̷a̷r̷k̷s̷",
    "\u00a0no\u00a0break\u202fspaces\u3000\u1680\u2003em",
    # Letters and digits of Unicode 14, 15, 15.1, 16 and 17, where a table without them cuts otherwise; apart, as of a
    # text with characters that this Python does not know the reference takes all.
    "\u0870's1\U0001df00're",
    "\U000323af's1\U00011f50a",
    "\U0002ebf0's1\U0002ee5da",
    "\ua7cb's1\U00010d40a \U00016d40're",
    "\U000323b0's1\U00011de0a \u088f're",
    "<0x41><0xE4> <0xFF>x",
    "tail without end",
)


def nasty_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """`TEXTS`, and the names of this tokenizer's added tokens as a page might have them.

    Texts that the reference takes for a young character come without it once more: the rest is for the program to say.
    """
    others = tuple(old for text in TEXTS if (old := without_young_characters(text)) != text)
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    names = [token.content for _, token in added[:24]]
    written = tuple(f"{name}x {name} y{name}" for name in names)
    return (*TEXTS, *others, *written, " ".join(names), "".join(names))
