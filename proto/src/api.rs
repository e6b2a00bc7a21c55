//! The management API: messages, and the services behind feature `server`.
//!
//! `towline/v1/towline.proto` is the contract; JSON follows proto3's canonical mapping through
//! [`to_json`] and [`from_json`].

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::use_self,
    clippy::or_fun_call,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/towline.v1.rs"));
}

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, ReflectMessage};

pub use generated::*;

/// Descriptors of the API, for reflection and the JSON mapping.
#[expect(clippy::expect_used, reason = "compiled in by our own build script")]
pub static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/towline.fds")).as_slice())
        .expect("descriptors are compiled by the build script")
});

/// A message in proto3's canonical JSON.
///
/// # Errors
/// A timestamp or duration outside what JSON can say.
pub fn to_json<M: ReflectMessage>(message: &M) -> Result<String, serde_json::Error> {
    serde_json::to_string(&message.transcode_to_dynamic())
}

/// A message from proto3's canonical JSON; unknown fields are refused by name.
///
/// # Errors
/// What is wrong, with line and column.
pub fn from_json<M: ReflectMessage + Default>(json: &[u8]) -> Result<M, serde_json::Error> {
    decode(json, &DeserializeOptions::new().deny_unknown_fields(true))
}

/// As [`from_json`], but passes over unknown fields: an answer may come from a newer version.
///
/// # Errors
/// What is wrong, with line and column.
pub fn from_newer_json<M: ReflectMessage + Default>(json: &[u8]) -> Result<M, serde_json::Error> {
    decode(json, &DeserializeOptions::new().deny_unknown_fields(false))
}

fn decode<M: ReflectMessage + Default>(
    json: &[u8],
    options: &DeserializeOptions,
) -> Result<M, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let dynamic = DynamicMessage::deserialize_with_options(
        M::default().descriptor(),
        &mut deserializer,
        options,
    )?;
    deserializer.end()?;
    dynamic.transcode_to().map_err(serde::de::Error::custom)
}
