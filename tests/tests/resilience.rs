//! Parts that die, and links that fail.
