use serde_json::{Value, json};

use super::*;
use crate::testing::{NOW, Signer, at, claims, encode};

mod attacks;
mod offline;
mod online;
