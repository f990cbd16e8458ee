"""How each kind of input becomes numbers: what a recipe says of it, what is learnt of it, and the numbers written."""
