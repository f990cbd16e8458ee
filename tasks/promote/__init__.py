"""Stage 8: release checks, and the champion."""
