"""`pretrain doctor`: on a login node or a laptop, before anything is queued, without torch or an accelerator."""
