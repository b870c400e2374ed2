//! Single requests to a block device, as a program: the I/O of the experiments in guest/story*.sh.
//!
//! Build: rustc -O blocks.rs (needs only the standard library). Blocks have 4 KiB. BYTE is two
//! hexadecimal digits, and fills what is written. All I/O is O_DIRECT, and a request is one system
//! call.
//!
//!   blocks read DEVICE BLOCK COUNT           prints the bytes that are there, each run of equal
//!   ones once, or EIO blocks write DEVICE BLOCK COUNT BYTE [fua] [flush] [cut] prints ok or EIO.
//!   fua: with O_DSYNC; flush: and an fsync after it; cut: and, as soon as that is answered, the
//!   machine is reset, in the same process, so that nothing else happens in between blocks flush
//!   DEVICE                      prints ok or EIO blocks watch DEVICE BLOCK FILE           reads
//!   the block again and again until FILE exists; prints the bytes that came, each run of equal
//!   reads once blocks race DEVICE BLOCK ROUNDS          writes 1 MiB and reads its first block,
//!   ROUNDS times, while another thread reads this block all the time; prints how often what was
//!   read was old

use std::alloc::{Layout, alloc_zeroed};
use std::env::args;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const BLOCK: usize = 4096;
const O_DIRECT: i32 = 0x4000;
const O_DSYNC: i32 = 0x1000;
const EIO: i32 = 5;

fn open(device: &str, flags: i32) -> File {
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT | flags)
        .open(device);
    file.unwrap_or_else(|error| panic!("{device}: {error}"))
}

/// Memory that O_DIRECT takes.
fn blocks(count: usize) -> &'static mut [u8] {
    let layout = Layout::from_size_align(count * BLOCK, BLOCK).unwrap();
    unsafe { std::slice::from_raw_parts_mut(alloc_zeroed(layout), count * BLOCK) }
}

fn at(block: &str) -> u64 {
    block.parse::<u64>().unwrap() * BLOCK as u64
}

/// Each run of equal values once, in hexadecimal.
fn runs(values: impl Iterator<Item = u8>) -> String {
    let mut values: Vec<u8> = values.collect();
    values.dedup();
    values.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// "ok" or "EIO"; any other error is none of the experiment.
fn answer(result: io::Result<()>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(error) if error.raw_os_error() == Some(EIO) => "EIO",
        Err(error) => panic!("{error}"),
    }
}

fn read(device: &str, block: &str, count: &str) {
    let data = blocks(count.parse().unwrap());
    match answer(open(device, 0).read_exact_at(data, at(block))) {
        "ok" => println!("{}", runs(data.iter().copied())),
        error => println!("{error}"),
    }
}

fn write(device: &str, block: &str, count: &str, byte: &str, then: &[&str]) {
    let data = blocks(count.parse().unwrap());
    data.fill(u8::from_str_radix(byte, 16).unwrap());
    let file = open(device, if then.contains(&"fua") { O_DSYNC } else { 0 });
    let cut = then.contains(&"cut").then(|| {
        // Told before: nothing is between the answer and the reset.
        std::fs::write("/dev/status", "cut-follows\n").unwrap();
        OpenOptions::new().write(true).open("/proc/sysrq-trigger").unwrap()
    });
    let written = file.write_all_at(data, at(block));
    let done = written
        .and_then(|()| if then.contains(&"flush") { file.sync_all() } else { Ok(()) });
    if let (Some(mut sysrq), Ok(())) = (cut, &done) {
        sysrq.write_all(b"b").unwrap();
    }
    println!("{}", answer(done));
}

fn watch(device: &str, block: &str, end: &str) {
    let (file, data) = (open(device, 0), blocks(1));
    let mut seen: Vec<u8> = Vec::new();
    while !Path::new(end).exists() {
        file.read_exact_at(data, at(block)).unwrap();
        // The first byte only: the rest of a read that meets a write may be older.
        if seen.last() != Some(&data[0]) {
            seen.push(data[0]);
        }
    }
    println!("{}", runs(seen.into_iter()));
}

fn race(device: &str, block: &str, rounds: usize) {
    let over = AtomicBool::new(false);
    let (mut stale, mut reads) = (0, 0u64);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (file, data, mut reads) = (open(device, 0), blocks(1), 0);
            while !over.load(Ordering::Relaxed) {
                file.read_exact_at(data, at(block)).unwrap();
                reads += 1;
            }
            reads
        });
        let (file, large, small) = (open(device, 0), blocks(256), blocks(1));
        for round in 0..rounds {
            let byte = if round % 2 == 0 { 0xAA } else { 0xBB };
            large.fill(byte);
            file.write_all_at(large, at(block)).unwrap();
            file.read_exact_at(small, at(block)).unwrap();
            stale += usize::from(small.iter().any(|&found| found != byte));
        }
        over.store(true, Ordering::Relaxed);
        reads = reader.join().unwrap();
    });
    println!("old after {stale} of {rounds} writes ({reads} reads beside them)");
}

fn main() {
    let words: Vec<String> = args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["read", device, block, count] => read(device, block, count),
        ["write", device, block, count, byte, ref then @ ..] => write(device, block, count, byte,
            then),
        ["flush", device] => println!("{}", answer(open(device, 0).sync_all())),
        ["watch", device, block, end] => watch(device, block, end),
        ["race", device, block, rounds] => race(device, block, rounds.parse().unwrap()),
        _ => {
            eprintln!("usage: see the head of blocks.rs");
            exit(2);
        }
    }
}
