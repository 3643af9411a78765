//! Compiles proto/inference.proto into the messages and the service that `grpc` implements, and into the descriptor that
//! reflection serves. No protoc is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["inference.proto"], ["proto"])?;
    let folder = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(folder.join("inference.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::Codec")
        .build_transport(false)
        .generate_default_stubs(true)
        .compile_fds(files)?;
    Ok(())
}
