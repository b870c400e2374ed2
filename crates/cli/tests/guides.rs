//! The guides to operating, to moving and to removal: their commands, in their order.
//!
//! Two kinds of lines are left out: those that speak to the kernel's bcache, which needs a virtual
//! machine (tests/kernel-vm), and `serve`, whose place a daemon of the test takes.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::guide::{blocks, blocks_of_kind};
use support::{Daemon, make_set, must, scratch, sha256_of, sparse, tool, ubcache};

/// The commands of a guide's blocks.
fn commands(guide: &str) -> Vec<String> {
    blocks(guide).concat()
}

/// A set in the files `CACHE` and `DISK`, with the export `data`.
fn set_of_files(directory: &Path) {
    let (cache, disks) = make_set(directory, &[16], &["--label", "data"]);
    std::fs::rename(cache, directory.join("CACHE")).expect("a file");
    std::fs::rename(&disks[0], directory.join("DISK")).expect("a file");
}

/// Runs a command in a directory that has the files `CACHE` and `DISK`.
fn run(directory: &Path, command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let mut command = if program == "ubcache" { ubcache() } else { tool(program) };
    command.env("UBCACHE_HEADERS", directory.join("headers"));
    must(command.args(words).current_dir(directory).env("XDG_RUNTIME_DIR", directory))
}

/// A set that is served, whose control socket is in the place where commands look.
fn serve(directory: &Path, options: &[&str]) -> Daemon {
    serve_with(directory, "CACHE", options)
}

fn serve_with(directory: &Path, cache: &str, options: &[&str]) -> Daemon {
    let (cache, disks) = (directory.join(cache), [directory.join("DISK")]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, options);
    make_known(directory, &daemon);
    daemon
}

/// Puts a link to the control socket where commands look.
fn make_known(directory: &Path, daemon: &Daemon) {
    let place = directory.join("ubcache");
    std::fs::create_dir_all(&place).expect("a directory");
    let socket = place.join("set.sock");
    let _ = std::fs::remove_file(&socket);
    std::os::unix::fs::symlink(&daemon.control, socket).expect("a link");
}

#[test]
fn a_removed_set_leaves_all_data_on_the_disk() {
    let scratch = scratch();
    let directory = scratch.path();
    set_of_files(directory);
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
            "ubcache unmake --in-place DISK" => {
                let disk = std::fs::read(directory.join("DISK")).expect("the disk");
                assert!(disk.starts_with(&content), "{said}");
            }
            _ => {}
        }
    }
    assert!(ran >= 9 && daemon.is_none(), "all commands of the guide ran: {ran}");
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
    let (of_driver, _) = guide_to_moving();
    for command in of_driver {
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

/// The commands of moving in and out, and those of moving to another disk.
fn guide_to_moving() -> (Vec<String>, Vec<String>) {
    let blocks = blocks("move.md");
    let to_a_disk = |block: &Vec<String>| block.iter().any(|it| it.starts_with("ubcache move"));
    let first = blocks.iter().position(to_a_disk).expect("a block about another disk");
    (blocks[..first].concat(), blocks[first..].concat())
}

/// The reference has a command, too: it moves the volume on to a third disk.
#[test]
fn a_volume_moves_to_another_disk_as_the_guide_says() {
    let scratch = scratch();
    let directory = scratch.path();
    set_of_files(directory);
    for disk in ["NEW", "THIRD"] {
        sparse(&directory.join(disk), 16 << 20);
    }
    let mut content = vec![0; 8 << 20];
    support::pseudo_random(9, &mut content);
    let mut daemon = Some(serve(directory, &["--mode", "writethrough"]));
    let served = daemon.as_ref().expect("it runs");
    support::pieces::write_pieces(&mut served.client("data"), &content);
    let (_, mut commands) = guide_to_moving();
    let blocks = blocks("../reference/devices.md").concat();
    commands.extend(blocks.into_iter().filter(|it| it.starts_with("ubcache move")));
    assert_eq!(commands.len(), 7, "{commands:?}");
    for command in commands {
        if command == "ubcache serve -C CACHE -B NEW" {
            std::fs::remove_file(directory.join("DISK")).expect("the old disk may go");
            let (cache, disks) = (directory.join("CACHE"), [directory.join("NEW")]);
            let served = Daemon::start("pool", directory, &cache, &disks, &[]);
            make_known(directory, &served);
            support::pieces::read_pieces(&mut served.client("data"), &content);
            daemon = Some(served);
            continue;
        }
        // The volume is small: at the rate of the guide the move would be over at once.
        let command = command.replace("50M", "1k").replace("/dev/sdc", "THIRD");
        let said = run(directory, &command);
        match command.as_str() {
            "ubcache status" => assert!(said.contains("moves to"), "{said}"),
            "ubcache move data --cancel" => assert!(said.contains("stays on"), "{said}"),
            "ubcache move data NEW" => assert!(said.contains("moved from"), "{said}"),
            "ubcache stop" => daemon.take().expect("it runs").wait(),
            _ => {}
        }
    }
    let served = daemon.take().expect("it runs");
    support::pieces::read_pieces(&mut served.client("data"), &content);
    let status = served.status();
    let path = status["sets"][0]["volumes"][0]["backing"]["path"].as_str().expect("a path");
    assert!(path.ends_with("/THIRD"), "{path}");
    served.stop();
    let disk = std::fs::read(directory.join("THIRD")).expect("the disk");
    assert!(disk[8192..].starts_with(&content), "all data is on the disk");
}

/// State in which the commands of a block of the guide to operating are of use.
fn state_before(block: &[String], directory: &Path) -> Option<Daemon> {
    let lost = || std::fs::remove_file(directory.join("CACHE")).expect("the cache");
    match block[0].as_str() {
        "ubcache serve --cache-optional -C CACHE -B DISK" => {
            lost();
            None
        }
        "ubcache forget-cache DISK --discard-dirty" => {
            let daemon = serve(directory, &support::STAYS_DIRTY);
            daemon.client("data").write(0, &vec![3; 1 << 20], true).expect("a write");
            daemon.stop();
            lost();
            None
        }
        "ubcache make -C NEW" => {
            lost();
            Some(serve(directory, &["--cache-optional"]))
        }
        _ => {
            let daemon = serve(directory, &support::STAYS_DIRTY);
            daemon.client("data").write(0, &vec![3; 1 << 20], true).expect("a write");
            daemon.set("writeback_running=1");
            Some(daemon)
        }
    }
}

#[test]
fn operating_commands_do_what_the_guide_says() {
    let mut ran = 0;
    for block in blocks("operate.md") {
        let scratch = scratch();
        let directory = scratch.path();
        set_of_files(directory);
        sparse(&directory.join("NEW"), 300 << 20);
        let mut daemon = state_before(&block, directory);
        let mut uuid = String::new();
        if let Some(daemon) = &daemon {
            let report = daemon.status();
            let found = &report["sets"][0]["volumes"][0]["uuid"];
            uuid = found.as_str().expect("a UUID").to_owned();
        }
        for command in &block {
            if let Some(options) = command.strip_prefix("ubcache serve ") {
                let (options, cache) = options.split_once("-C ").expect("a cache");
                let (cache, _) = cache.split_once(" -B DISK").expect("a disk");
                let options: Vec<&str> = options.split_whitespace().collect();
                daemon = Some(serve_with(directory, cache, &options));
            } else {
                run(directory, &command.replace("UUID", &uuid));
            }
            ran += 1;
        }
        let last = block.last().expect("a command").as_str();
        let Some(daemon) = daemon else { panic!("no daemon after {block:?}") };
        if last == "ubcache stop" {
            daemon.wait();
            continue;
        }
        let set = daemon.status()["sets"][0].clone();
        let volume = &set["volumes"][0];
        match last {
            "ubcache drain data --wait" => assert_eq!(volume["dirty_bytes"], 0),
            "ubcache attach --cache NEW" | "ubcache attach data" => {
                assert_eq!(volume["state"], "clean", "{set}");
                assert!(set["cache"]["path"].as_str().is_some_and(|path| path.ends_with("NEW")));
            }
            "ubcache serve --cache-optional -C CACHE -B DISK" => {
                assert_eq!(volume["state"], "no cache", "{set}");
            }
            "truncate -s 50331648 CACHE" => assert_eq!(set["cache"]["size_bytes"], 48 << 20),
            "ubcache add -B data=DISK" => assert_eq!(volume["name"], "data"),
            "ubcache forget-disk UUID --discard-dirty" => {
                assert!(volume.is_null() && set["absent"].as_array().is_some_and(Vec::is_empty));
            }
            _ => {}
        }
    }
    assert!(ran >= 25, "all commands of the guide ran: {ran}");
}

/// The last section of the first hour: a set in files, from a terminal. What comes before needs a
/// booted machine (package.rs).
#[test]
fn first_hour_with_files_runs_without_a_package() {
    let scratch = scratch();
    let directory = scratch.path();
    let blocks = blocks("first-hour.md");
    let block = blocks.last().expect("a block");
    let mut daemon = None;
    for command in block {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["ubcache", "serve", "-C", cache, "-B", disk, "--nbd", _, ref options @ .., "&"] => {
                let (cache, disk) = (directory.join(cache), directory.join(disk));
                let served = Daemon::start("pool", directory, &cache, &[disk], options);
                make_known(directory, &served);
                daemon = Some(served);
            }
            ["nbdcopy", ..] => {
                let uri = daemon.as_ref().expect("it runs").uri("data");
                let file = env!("CARGO_BIN_EXE_ubcache");
                must(tool("nbdcopy").args(["--synchronous", file]).arg(uri));
            }
            _ => {
                let said = run(directory, command);
                match words[1] {
                    "stop" => daemon.take().expect("it runs").wait(),
                    "get" => assert!(said.contains("[writeback]"), "{said}"),
                    "check" => assert!(said.contains("clean"), "{said}"),
                    _ => {}
                }
            }
        }
    }
    assert!(daemon.is_none() && block.len() >= 9, "all commands ran");
}

/// The table of alerts names all that there are, and no others.
#[test]
fn every_alert_is_in_the_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a file");
    let rules = read("contrib/prometheus/ubcache.rules.yml");
    let alerts: Vec<&str> =
        rules.lines().filter_map(|it| it.trim().strip_prefix("- alert: ")).collect();
    let guide = read("docs/guide/operate.md");
    let listed: Vec<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `Ubcache"))
        .filter_map(|rest| rest.split('`').next())
        .collect();
    let expected: Vec<&str> = alerts.iter().filter_map(|it| it.strip_prefix("Ubcache")).collect();
    assert_eq!(listed, expected);
}

#[test]
fn a_disk_behind_a_network_is_served() {
    const TEST: &str = "a_disk_behind_a_network_is_served";
    if !support::have(TEST, &["nbdkit", "qemu-nbd"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    sparse(&directory.join("CACHE"), 320 << 20);
    sparse(&directory.join("IMAGE"), 16 << 20);
    let (mut server, mut daemon, mut servers) = (None, None, 0);
    let socket = directory.join("SOCKET");
    for command in commands("network-disks.md") {
        let command = command.replace("SOCKET", support::text(&socket));
        let mut words = command.split_whitespace();
        let program = words.next().expect("a program");
        if program != "ubcache" {
            // One after the other, over the same file.
            drop(server.take());
            let _ = std::fs::remove_file(&socket);
            let mut start = tool(program);
            // nbdkit goes to the background otherwise.
            start.args((program == "nbdkit").then_some("-f")).args(words).current_dir(directory);
            let mut started = support::Guard(start.spawn().expect("a server"));
            while !socket.exists() {
                let ended = started.0.try_wait().expect("a child can be waited for");
                assert!(ended.is_none(), "{command}: {ended:?}");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            server = Some(started);
            servers += 1;
        } else if command.starts_with("ubcache serve") {
            let uri = words.next_back().expect("a URI");
            let cache = directory.join("CACHE");
            let served = Daemon::start("pool", directory, &cache, &[uri.into()], &[]);
            make_known(directory, &served);
            served.client("data").write(0, &[1; 4096], true).expect("a write");
            daemon = Some(served);
        } else {
            let said = run(directory, &command);
            match command.as_str() {
                "ubcache stop" => daemon.take().expect("it runs").wait(),
                "ubcache status" => assert!(said.contains("nbd+unix:///"), "{said}"),
                _ => {}
            }
        }
    }
    assert!(servers == 2 && daemon.is_none(), "all commands of the guide ran");
}

#[test]
fn a_volume_on_an_object_store_is_served() {
    let scratch = scratch();
    let directory = scratch.path();
    sparse(&directory.join("CACHE"), 320 << 20);
    let store = support::moto::Moto::start(directory);
    let with_credentials = format!("&credentials={}", support::text(&store.credentials));
    let mut daemon = None;
    let mut ran = 0;
    let mut uri = Vec::new();
    let start = |uri: &[std::path::PathBuf]| {
        let served = Daemon::start("pool", directory, &directory.join("CACHE"), uri, &[]);
        make_known(directory, &served);
        served
    };
    for command in commands("object-stores.md") {
        let Some(words) = command.strip_prefix("ubcache ") else { continue };
        ran += 1;
        let url = format!("http://{}{with_credentials}", store.address);
        let command = command.replace("BUCKET", "bucket").replace("URL", &url).replace('\'', "");
        if words.starts_with("serve") {
            uri = command.split_whitespace().next_back().map(Into::into).into_iter().collect();
            let served = start(&uri);
            served.client("data").write(0, &[1; 4096], true).expect("a write");
            daemon = Some(served);
        } else if words.starts_with("resize") {
            // The guide has stopped it before.
            let served = start(&uri);
            run(directory, &command);
            assert_eq!(served.number(0, "/size_bytes"), (200 << 30) - 8192);
            served.stop();
        } else {
            let said = run(directory, &command);
            match words {
                "stop" => daemon.take().expect("it runs").wait(),
                "status" => assert!(said.contains("s3://bucket/disk"), "{said}"),
                _ => {}
            }
        }
    }
    assert!(ran == 5 && daemon.is_none(), "all commands of the guide ran");
}

#[test]
fn a_disk_with_data_is_adopted_and_given_back() {
    let scratch = scratch();
    let directory = scratch.path();
    sparse(&directory.join("CACHE"), 320 << 20);
    let mut content = vec![0; 16 << 20];
    support::pseudo_random(5, &mut content);
    std::fs::write(directory.join("DISK"), &content).expect("a disk");
    let headers = directory.join("headers");
    let part = directory.join("PART");
    sparse(&part, 16 << 20);
    let has_ext4 = support::have(
        "a_disk_with_data_is_adopted_and_given_back",
        &["mkfs.ext4", "e2fsck", "resize2fs"],
    );
    if has_ext4 {
        must(tool("mkfs.ext4").args(["-q", "-F"]).arg(&part));
    }
    let mut converted = 0;
    for command in commands("disk-with-data.md").iter().filter(|it| it.contains("PART")) {
        if has_ext4 {
            run(directory, command);
            // resize2fs cuts off a file, where a device keeps its size.
            let file = std::fs::File::options().write(true).open(&part).expect("a file");
            file.set_len(16 << 20).expect("a size");
            converted += 1;
        }
    }
    assert!(converted == 4 || !has_ext4, "the commands of a superblock of its own ran");
    let mut daemon = None;
    for command in commands("disk-with-data.md") {
        if command.contains("PART") {
            continue;
        }
        if command == "ubcache serve -C CACHE -B DISK" {
            let (cache, disks) = (directory.join("CACHE"), [directory.join("DISK")]);
            let (mut serve, socket, control, log) =
                support::serve_command("pool", directory, &cache, &disks, &support::STAYS_DIRTY);
            serve.env("UBCACHE_HEADERS", &headers);
            let served = Daemon::try_start_command((serve, socket, control, log));
            let served = served.unwrap_or_else(|(_, said)| panic!("{said}"));
            make_known(directory, &served);
            let mut client = served.client("data");
            let mut block = vec![0; 4096];
            client.read(0, &mut block).expect("a read");
            assert!(content.starts_with(&block), "the volume begins where the disk does");
            content[4096..8192].fill(3);
            client.write(4096, &content[4096..8192], true).expect("a write");
            daemon = Some(served);
            continue;
        }
        let mut words = command.split_whitespace().skip(1);
        let mut ubcache = ubcache();
        ubcache.env("UBCACHE_HEADERS", &headers).env("XDG_RUNTIME_DIR", directory);
        must(ubcache.args(&mut words).current_dir(directory));
        if command == "ubcache stop" {
            daemon.take().expect("it runs").wait();
            compare_commands_for_the_driver(directory, &headers);
        }
    }
    assert!(daemon.is_none(), "all commands of the guide ran");
    assert!(std::fs::read(directory.join("DISK")).expect("the disk") == content);
    assert!(support::names_in(&headers).is_empty());
}

/// The guide has the commands that `show` prints for the kernel's bcache.
fn compare_commands_for_the_driver(directory: &Path, headers: &Path) {
    let mut show = ubcache();
    show.env("UBCACHE_HEADERS", headers).args(["show", "DISK"]).current_dir(directory);
    let said = must(&mut show);
    let printed: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let block = blocks_of_kind("disk-with-data.md", "sh").swap_remove(0);
    let header = headers.join(&support::names_in(headers)[0]);
    let expected: Vec<String> = block
        .iter()
        .map(|line| {
            let line = line.replace("/var/lib/ubcache/UUID.header", support::text(&header));
            let line = line.replace("SECTORS", &((16 << 20) / 512).to_string());
            let disk =
                format!("disk=$(losetup --find --show {})", directory.join("DISK").display());
            line.replace("disk=/dev/sdb", &disk)
        })
        .filter(|line| !line.starts_with("echo CACHE"))
        .collect();
    assert_eq!(printed, expected, "{said}");
}
