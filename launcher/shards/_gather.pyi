"""The compiled part of reading (`_gather.c`); it may be missing."""

from launcher.shards.gather import Gather

gather: Gather
