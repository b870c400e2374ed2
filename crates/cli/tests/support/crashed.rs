//! A set that the Linux driver left behind a power cut, and commands with an expected exit code.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Cache, backing device, and the digest of the volume.
pub fn a_crashed_set(directory: &Path) -> (PathBuf, PathBuf, String) {
    let case =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures/writeback-crash");
    for name in ["cache", "backing"] {
        let packed = std::fs::read(case.join(format!("{name}.img.xz"))).expect("an image");
        let mut bytes = Vec::new();
        lzma_rust2::XzReader::new(packed.as_slice(), false)
            .read_to_end(&mut bytes)
            .expect("a whole image");
        std::fs::write(directory.join(name), bytes).expect("room");
    }
    let manifest = std::fs::read(case.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let digest = manifest["devices"][0]["sha256"].as_str().expect("a digest").to_owned();
    (directory.join("cache"), directory.join("backing"), digest)
}

/// Runs a command that has to end with this code, and does not panic.
pub fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().expect("ubcache runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    output
}

/// Output of a command, which has to be JSON.
pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}
