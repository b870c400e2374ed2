//! Sets that the Linux driver has written, served over NBD: the content is what the driver read.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use support::{Daemon, each_io, sparse};

const CHUNK: usize = 1 << 20;

/// Unpacks an image without writing its zeroes.
fn unpack(packed: &Path, to: &Path) {
    use std::io::Read;
    use std::os::unix::fs::FileExt;
    let packed =
        std::fs::File::open(packed).unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
    let mut reader = lzma_rust2::XzReader::new(std::io::BufReader::new(packed), true);
    let file = std::fs::File::create(to).expect("a file in the scratch directory");
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..]).expect("a good xz file") {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            break;
        }
        if buffer[..filled].iter().any(|byte| *byte != 0) {
            file.write_all_at(&buffer[..filled], at).expect("room for the image");
        }
        at += filled as u64;
    }
    file.set_len(at).expect("a sparse file");
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures")
}

fn content(daemon: &Daemon, export: &str) -> (u64, String) {
    let mut client = daemon.client(export);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let bytes = client.bytes();
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(CHUNK as u64) as usize;
        client
            .read(at, &mut buffer[..step])
            .unwrap_or_else(|error| panic!("reading byte {at}: {error}"));
        hash.update(&buffer[..step]);
        at += step as u64;
    }
    (bytes, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn serve(case: &str) {
    each_io(case, |io, directory| {
        let from = fixtures().join(case);
        let manifest = std::fs::read_to_string(from.join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value =
            serde_json::from_str(&manifest).expect("a manifest in JSON");
        let (cache, backing) = (directory.join("cache.img"), directory.join("backing.img"));
        for file in [&cache, &backing] {
            sparse(file, 0);
            let name = format!("{}.xz", file.file_name().expect("a name").to_string_lossy());
            unpack(&from.join(name), file);
        }
        let device = &manifest["devices"][0];
        // Twice: the second start finds what the first one left.
        for start in ["first", "second"] {
            let daemon = Daemon::start(io, directory, &cache, std::slice::from_ref(&backing), &[]);
            let (bytes, hash) = content(&daemon, "backing.img");
            assert_eq!(bytes, device["bytes"].as_u64().expect("a size"), "{case}, {start} start");
            assert_eq!(hash, device["sha256"].as_str().expect("a hash"), "{case}, {start} start");
            daemon.stop();
        }
    });
}

#[test]
fn fresh() {
    serve("fresh");
}

#[test]
fn writeback_clean() {
    serve("writeback-clean");
}

#[test]
fn writeback_crash() {
    serve("writeback-crash");
}

#[test]
fn writethrough_mixed() {
    serve("writethrough-mixed");
}
