//! The guides to moving in and out and to removal: their commands, in their order.
//!
//! Two kinds of lines are left out: those that speak to the kernel's bcache, which needs a virtual
//! machine (tests/kernel-vm), and `serve`, whose place a daemon of the test takes.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::{Daemon, make_set, must, scratch, sha256_of, tool, ubcache};

/// The commands of a guide's blocks.
fn commands(guide: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide").join(guide);
    let text = std::fs::read_to_string(path).expect("a guide");
    let blocks = text.split("```\n").skip(1).step_by(2);
    let lines = blocks.flat_map(str::lines);
    lines.map(|line| line.split(" #").next().unwrap_or(line).trim().to_owned()).collect()
}

/// Runs a command in a directory that has the files `CACHE` and `DISK`.
fn run(directory: &Path, command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let mut command = if program == "ubcache" { ubcache() } else { tool(program) };
    must(command.args(words).current_dir(directory).env("XDG_RUNTIME_DIR", directory))
}

/// A set that is served, whose control socket is in the place where commands look.
fn serve(directory: &Path, options: &[&str]) -> Daemon {
    let (cache, disks) = (directory.join("CACHE"), [directory.join("DISK")]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, options);
    let place = directory.join("ubcache");
    std::fs::create_dir_all(&place).expect("a directory");
    let socket = place.join("set.sock");
    let _ = std::fs::remove_file(&socket);
    std::os::unix::fs::symlink(&daemon.control, socket).expect("a link");
    daemon
}

#[test]
fn a_removed_set_leaves_all_data_on_the_disk() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &["--label", "data"]);
    std::fs::rename(cache, directory.join("CACHE")).expect("a file");
    std::fs::rename(&disks[0], directory.join("DISK")).expect("a file");
    let mut content = vec![0; 1 << 20];
    support::pseudo_random(8, &mut content);
    let mut daemon = Some(serve(directory, &support::STAYS_DIRTY));
    let served = daemon.as_ref().expect("it runs");
    served.client("data").write(0, &content, true).expect("a write");
    assert!(served.number(0, "/dirty_bytes") > 0);
    served.set("writeback_running=1");
    let mut ran = 0;
    for command in commands("remove.md") {
        if command.starts_with("losetup") {
            // A loop device with that offset is the disk without its first bytes.
            let at = command.split_whitespace().nth(4).and_then(|at| at.parse().ok());
            let disk = std::fs::read(directory.join("DISK")).expect("the disk");
            assert!(disk[at.expect("an offset")..].starts_with(&content), "{command}");
            ran += 1;
            continue;
        }
        let said = run(directory, &command);
        ran += 1;
        match command.as_str() {
            "ubcache stop" => daemon.take().expect("it runs").wait(),
            "ubcache list DISK" => {
                assert!(said.contains("detached") && said.contains("no set"), "{said}");
            }
            "ubcache show DISK" => assert!(said.contains("first_sector\t16"), "{said}"),
            _ => {}
        }
    }
    assert!(ran >= 7 && daemon.is_none(), "all commands of the guide ran: {ran}");
    assert!(
        !ubcache()
            .arg("show")
            .arg(directory.join("CACHE"))
            .output()
            .is_ok_and(|it| it.status.success())
    );
}

#[test]
fn a_set_of_the_driver_moves_in_and_out() {
    let scratch = scratch();
    let directory = scratch.path();
    let case =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures/writeback-crash");
    for (name, image) in [("CACHE", "cache.img.xz"), ("DISK", "backing.img.xz")] {
        let packed = std::fs::read(case.join(image)).expect("an image");
        let mut reader = lzma_rust2::XzReader::new(packed.as_slice(), false);
        let mut file = std::fs::File::create(directory.join(name)).expect("room");
        std::io::copy(&mut reader, &mut file).expect("room");
    }
    let manifest = std::fs::read(case.join("manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let digest = manifest["devices"][0]["sha256"].as_str().expect("a digest");
    let mut daemon = None;
    let mut kernels = 0;
    for command in commands("move.md") {
        if command.starts_with("echo") && command.contains("/sys/") {
            kernels += 1;
        } else if command == "ubcache serve -C CACHE -B DISK" {
            let served = serve(directory, &[]);
            let export = served.status()["sets"][0]["volumes"][0]["name"].clone();
            let size = served.number(0, "/size_bytes");
            let mut content = vec![0; size as usize];
            let mut client = served.client(export.as_str().expect("a name"));
            for (index, piece) in content.chunks_mut(1 << 20).enumerate() {
                client.read((index as u64) << 20, piece).expect("a read");
            }
            let file = directory.join("content");
            std::fs::write(&file, content).expect("room");
            assert_eq!(sha256_of(&file), digest, "dirty data was taken over");
            daemon = Some(served);
        } else {
            run(directory, &command);
            if command == "ubcache stop" {
                daemon.take().expect("it runs").wait();
            }
        }
    }
    assert!(kernels == 4 && daemon.is_none(), "all commands of the guide ran");
    for name in ["CACHE", "DISK"] {
        if support::is_installed("bcache-super-show") {
            let shown = must(tool("bcache-super-show").arg(directory.join(name)));
            assert!(shown.contains("[match]"), "{shown}");
        }
    }
}
