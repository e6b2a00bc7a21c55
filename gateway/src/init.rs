//! `towline-gateway init`: makes what a gateway runs on.
