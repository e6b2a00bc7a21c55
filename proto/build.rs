//! Compiles the management API without `protoc`, messages with reflection (for the JSON mapping).

use std::path::{Path, PathBuf};

use tonic_prost_build as tonic;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = Path::new("towline/v1");
    println!("cargo:rerun-if-changed={}", directory.display());
    let mut files = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "proto"));
    files.sort();

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true);
    for file in files {
        compiler.open_file(file)?;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "how cargo tells a build script where to write"
    )]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("towline.fds"),
        compiler.encode_file_descriptor_set(),
    )?;

    let mut config = tonic::configure()
        .build_client(false)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]");
    for message in compiler.descriptor_pool().all_messages() {
        if message.package_name() == "towline.v1" {
            let name = message.full_name();
            config = config.message_attribute(
                name,
                format!(
                    "#[derive(::prost_reflect::ReflectMessage)] \
                     #[prost_reflect(descriptor_pool = \"crate::api::DESCRIPTORS\", message_name = \"{name}\")]"
                ),
            );
        }
    }
    config.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
