//! The test pattern, as a program: what ubcache and the Linux driver write and verify for each
//! other.
//!
//! Build: rustc -O pattern.rs (needs only the standard library; it runs on the host and in the
//! guest).
//!
//! Sector s (512 bytes) at generation g, 1 <= g <= 65535, of a volume with the
//! 64-bit salt S is the little-endian u64  S ^ (s << 16 | g)  sixty-four times.
//! Generation 0 means a sector of zeros.
//!
//!   pattern random SEED COUNT BLOCK FIRST LAST GEN prints COUNT operations of BLOCK sectors each,
//!   at random multiples of BLOCK within sectors FIRST..LAST, as lines "SECTOR COUNT GEN" pattern
//!   write DEVICE SALT    does the operations on stdin, one O_DIRECT write each pattern read DEVICE
//!   the same with reads pattern trim DEVICE          does the discards on stdin, of lines "SECTOR
//!   COUNT 0" pattern flush DEVICE         asks the device to make everything durable pattern model
//!   folds operations on stdin into the content they leave pattern identify DEVICE SALT prints a
//!   device's content, same form as model pattern verify DEVICE SALT   compares a device with the
//!   content on stdin pattern differ A B SECTOR    counts the 4 KiB blocks of A that differ from B
//!   from SECTOR on pattern load DEVICE SALT LOG SEED COUNT UNIT LAST EVERY THREADS writes, and
//!   reads back now and then, until it is killed or each of THREADS has done COUNT operations of 1
//!   to 16 times UNIT sectors; each has its own share of sectors 0..LAST, flushes after EVERY
//!   operations and says so in LOG.0, LOG.1, … pattern check-load DEVICE SALT LOG SEED COUNT UNIT
//!   LAST EVERY THREADS <CONTENT after the kill: each sector holds what the last flushed write left
//!   there (CONTENT, where there was none), or what a later one wrote
//!
//! A device is a path, or nbd:SOCKET:EXPORT. "Content" is lines "SECTOR COUNT GEN": ascending,
//! joined, zeros left out.

#[allow(dead_code)]
#[path = "../../crates/cli/src/nbd_client.rs"]
mod nbd_client;

use std::alloc::{Layout, alloc_zeroed};
use std::collections::BTreeSet;
use std::env::args;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write, stdin};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::exit;

use nbd_client::Client;

const SECTOR: usize = 512;
const O_DIRECT: i32 = 0x4000;
const CHUNK: usize = 1 << 20;

type Run = (u64, u64, u64);

fn aligned(bytes: usize) -> &'static mut [u8] {
    let layout = Layout::from_size_align(bytes, 4096).unwrap();
    unsafe { std::slice::from_raw_parts_mut(alloc_zeroed(layout), bytes) }
}

fn word(salt: u64, sector: u64, generation: u64) -> u64 {
    match generation {
        0 => 0,
        _ => salt ^ (sector << 16 | generation),
    }
}

fn fill(buffer: &mut [u8], salt: u64, first: u64, generation: u64) {
    for (index, sector) in buffer.chunks_exact_mut(SECTOR).enumerate() {
        let bytes = word(salt, first + index as u64, generation).to_le_bytes();
        sector.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&bytes));
    }
}

/// The generation of a sector, or None where it holds anything but the pattern.
fn generation(data: &[u8], salt: u64, sector: u64) -> Option<u64> {
    let first = u64::from_le_bytes(data[..8].try_into().unwrap());
    if data.chunks_exact(8).any(|w| w != &data[..8]) {
        return None;
    }
    if first == 0 {
        return Some(0);
    }
    let plain = first ^ salt;
    (plain >> 16 == sector && plain & 0xffff != 0).then_some(plain & 0xffff)
}

fn push(runs: &mut Vec<Run>, sector: u64, count: u64, generation: u64) {
    match runs.last_mut() {
        Some(last) if last.2 == generation && last.0 + last.1 == sector => last.1 += count,
        _ => runs.push((sector, count, generation)),
    }
}

fn print(runs: &[Run]) {
    let mut text = String::new();
    for (sector, count, generation) in runs.iter().filter(|run| run.2 != 0) {
        text += &format!("{sector} {count} {generation}\n");
    }
    print!("{text}");
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn lines() -> Vec<Run> {
    let mut text = String::new();
    stdin().read_to_string(&mut text).unwrap();
    text.lines()
        .map(|line| {
            let fields: Vec<u64> = line.split_whitespace().map(number).collect();
            (fields[0], fields[1], fields[2])
        })
        .collect()
}

/// A file, a block device or an export of an NBD server.
enum Device {
    File(File, u64),
    Nbd(Client),
}

impl Device {
    fn open(path: &str, write: bool) -> Device {
        if let Some((socket, export)) = path.strip_prefix("nbd:")
            .and_then(|rest| rest.rsplit_once(':')) {
            return Device::Nbd(Client::connect(Path::new(socket), export).unwrap());
        }
        let mut file = OpenOptions::new().read(true).write(write).custom_flags(O_DIRECT).open(path)
            .unwrap();
        let bytes = file.seek(SeekFrom::End(0)).unwrap();
        Device::File(file, bytes)
    }

    fn bytes(&self) -> u64 {
        match self {
            Device::File(_, bytes) => *bytes,
            Device::Nbd(client) => client.bytes(),
        }
    }

    fn read(&mut self, at: u64, into: &mut [u8]) {
        match self {
            Device::File(file, _) => file.read_exact_at(into, at),
            Device::Nbd(client) => client.read(at, into),
        }
        .unwrap_or_else(|error| panic!("read of {} bytes at {at}: {error}", into.len()));
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        match self {
            Device::File(file, _) => file.write_all_at(data, at),
            Device::Nbd(client) => client.write(at, data, false),
        }
        .unwrap_or_else(|error| panic!("write of {} bytes at {at}: {error}", data.len()));
    }

    fn trim(&mut self, at: u64, bytes: u32) {
        match self {
            Device::File(..) => panic!("discards are for nbd:SOCKET:EXPORT only"),
            Device::Nbd(client) => client.trim(at, bytes),
        }
        .unwrap_or_else(|error| panic!("discard of {bytes} bytes at {at}: {error}"));
    }

    fn flush(&mut self) {
        match self {
            Device::File(file, _) => file.sync_all(),
            Device::Nbd(client) => client.flush(),
        }
        .unwrap_or_else(|error| panic!("flush: {error}"));
    }
}

fn for_each_sector(path: &str, mut visit: impl FnMut(u64, &[u8])) {
    let mut device = Device::open(path, false);
    let bytes = device.bytes();
    let buffer = aligned(CHUNK);
    let mut offset = 0;
    while offset < bytes {
        let length = CHUNK.min((bytes - offset) as usize);
        device.read(offset, &mut buffer[..length]);
        for (index, data) in buffer[..length].chunks_exact(SECTOR).enumerate() {
            visit(offset / SECTOR as u64 + index as u64, data);
        }
        offset += length as u64;
    }
}

/// A sequence of random numbers: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn random(seed: u64, count: u64, block: u64, first: u64, last: u64, generation: u64) {
    let mut random = Random(seed);
    let blocks = (last - first) / block;
    let mut text = String::new();
    for _ in 0..count {
        text += &format!("{} {block} {generation}\n", first + random.next() % blocks * block);
    }
    print!("{text}");
}

fn write(path: &str, salt: u64) {
    let mut device = Device::open(path, true);
    let buffer = aligned(CHUNK);
    for (sector, count, generation) in lines() {
        let bytes = count as usize * SECTOR;
        fill(&mut buffer[..bytes], salt, sector, generation);
        device.write(sector * SECTOR as u64, &buffer[..bytes]);
    }
}

fn read(path: &str) {
    let mut device = Device::open(path, false);
    let buffer = aligned(CHUNK);
    for (sector, count, _) in lines() {
        device.read(sector * SECTOR as u64, &mut buffer[..count as usize * SECTOR]);
    }
}

fn model() {
    let operations = lines();
    let end = operations.iter().map(|op| op.0 + op.1).max().unwrap_or(0);
    let mut content = vec![0; end as usize];
    for (sector, count, generation) in operations {
        content[sector as usize..(sector + count) as usize].fill(generation);
    }
    let mut runs = Vec::new();
    for (sector, generation) in content.into_iter().enumerate() {
        push(&mut runs, sector as u64, 1, generation);
    }
    print(&runs);
}

fn identify(path: &str, salt: u64) {
    let mut runs = Vec::new();
    let mut foreign = 0;
    for_each_sector(path, |sector, data| match generation(data, salt, sector) {
        Some(generation) => push(&mut runs, sector, 1, generation),
        None => foreign += 1,
    });
    print(&runs);
    if foreign > 0 {
        eprintln!("{path}: {foreign} sectors do not hold the pattern");
        exit(1);
    }
}

fn verify(path: &str, salt: u64) {
    let content = lines();
    let (mut next, mut wrong) = (0, 0);
    for_each_sector(path, |sector, data| {
        while next < content.len() && content[next].0 + content[next].1 <= sector {
            next += 1;
        }
        let expected = match content.get(next) {
            Some(run) if run.0 <= sector => run.2,
            _ => 0,
        };
        let found = generation(data, salt, sector);
        if found != Some(expected) {
            wrong += 1;
            if wrong <= 10 {
                println!("sector {sector}: generation {found:?}, expected {expected}");
            }
        }
    });
    println!("{wrong} wrong sectors");
    exit((wrong > 0) as i32);
}

fn differ(a: &str, b: &str, start: u64) {
    let Device::File(other, _) = Device::open(b, false) else { panic!("{b} is not a file") };
    let buffer = aligned(CHUNK);
    let mut differing = BTreeSet::new();
    for_each_sector(a, |sector, data| {
        let index = sector as usize * SECTOR % CHUNK;
        if index == 0 {
            other.read_at(buffer, (start + sector) * SECTOR as u64).unwrap();
        }
        if buffer[index..index + SECTOR] != *data {
            differing.insert(sector / 8);
        }
    });
    println!("{}", differing.len());
}

/// A load: its operations follow from this alone.
struct Load {
    seed: u64,
    count: u64,
    unit: u64,
    last: u64,
    every: u64,
    threads: u64,
}

impl Load {
    /// The sectors of one thread.
    fn share(&self, thread: u64) -> (u64, u64) {
        let units = self.last / self.unit / self.threads;
        (thread * units * self.unit, (thread + 1) * units * self.unit)
    }

    /// The writes of one thread, in order.
    fn operations(&self, thread: u64) -> Vec<Run> {
        assert!(self.count < 65_536, "generations have 16 bits");
        let (first, last) = self.share(thread);
        let mut random = Random(self.seed.wrapping_mul(1000) + thread);
        (1..=self.count)
            .map(|generation| {
                let sector = first + random.next() % ((last - first) / self.unit) * self.unit;
                let sectors = (1 + random.next() % 16) * self.unit;
                (sector, sectors.min(last - sector), generation)
            })
            .collect()
    }
}

fn load(path: &str, salt: u64, log: &str, load: &Load) {
    std::thread::scope(|scope| {
        for thread in 0..load.threads {
            scope.spawn(move || {
                let mut log = File::create(format!("{log}.{thread}")).unwrap();
                let mut device = Device::open(path, true);
                let (first, last) = load.share(thread);
                let mut model: Vec<Option<u64>> = vec![None; (last - first) as usize];
                let buffer = aligned(CHUNK);
                for (sector, count, generation) in load.operations(thread) {
                    let data = &mut buffer[..count as usize * SECTOR];
                    fill(data, salt, sector, generation);
                    device.write(sector * SECTOR as u64, data);
                    let from = (sector - first) as usize;
                    model[from..from + count as usize].fill(Some(generation));
                    if generation % 5 == 0 {
                        let again = (sector ^ (64 * load.unit)).clamp(first, last - load.unit);
                        let data = &mut buffer[..load.unit as usize * SECTOR];
                        device.read(again * SECTOR as u64, data);
                        for (index, data) in data.chunks_exact(SECTOR).enumerate() {
                            let sector = again + index as u64;
                            let found = self::generation(data, salt, sector);
                            let expected = model[(sector - first) as usize];
                            assert!(expected.is_none() || found == expected, "wrong: sector \
                                {sector}: {found:?}, not {expected:?}");
                        }
                    }
                    if generation % load.every == 0 {
                        device.flush();
                        log.write_all(format!("{generation}\n").as_bytes()).unwrap();
                    }
                }
            });
        }
    });
}

fn check_load(path: &str, salt: u64, log: &str, load: &Load) {
    let (_, end) = load.share(load.threads - 1);
    let mut durable = vec![0; load.last as usize];
    for (sector, count, generation) in lines() {
        let (from, to) = (sector.min(load.last), (sector + count).min(load.last));
        durable[from as usize..to as usize].fill(generation);
    }
    // For each sector the writes that may have got there although no flush says so.
    let mut later: Vec<Vec<u64>> = vec![Vec::new(); end as usize];
    let (mut flushed_writes, mut all) = (0, 0);
    for thread in 0..load.threads {
        let text = std::fs::read_to_string(format!("{log}.{thread}")).unwrap_or_default();
        let flushed = text.rsplit_once('\n').map_or(0, |(whole, _)| number(whole.lines().last()
            .unwrap_or("0")));
        flushed_writes += flushed;
        for (sector, count, generation) in load.operations(thread) {
            let range = sector as usize..(sector + count) as usize;
            if generation <= flushed {
                durable[range].fill(generation);
            } else if generation <= flushed + load.every {
                later[range].iter_mut().for_each(|list| list.push(generation));
            }
            all += 1;
        }
    }
    let (mut wrong, mut newer) = (0, 0);
    for_each_sector(path, |sector, data| {
        if sector >= load.last {
            return;
        }
        let found = generation(data, salt, sector);
        let at_least = durable[sector as usize];
        if found == Some(at_least) {
            return;
        }
        if let Some(found) = found
            && later.get(sector as usize).is_some_and(|list| list.contains(&found))
        {
            newer += 1;
            return;
        }
        wrong += 1;
        if wrong <= 10 {
            println!("sector {sector}: generation {found:?}, flushed was {at_least}");
        }
    });
    println!("{wrong} wrong sectors; {flushed_writes} of {all} writes were flushed, {newer} \
        sectors are newer");
    exit((wrong > 0 || flushed_writes == 0) as i32);
}

fn load_of(words: &[&str]) -> Load {
    let numbers: Vec<u64> = words.iter().map(|word| number(word)).collect();
    let [seed, count, unit, last, every,
        threads] = numbers[..] else { panic!("six numbers make a load") };
    Load { seed, count, unit, last, every, threads }
}

fn main() {
    let args: Vec<String> = args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["random", seed, count, block, first, last, generation] => random(
            number(seed), number(count), number(block), number(first), number(last),
                number(generation),
        ),
        ["write", device, salt] => write(device, number(salt)),
        ["read", device] => read(device),
        ["trim", device] => {
            let mut open = Device::open(device, true);
            for (sector, count, _) in lines() {
                open.trim(sector * SECTOR as u64, (count * SECTOR as u64) as u32);
            }
        }
        ["flush", device] => Device::open(device, true).flush(),
        ["load", device, salt, log, ref rest @ ..] => load(device, number(salt), log,
            &load_of(rest)),
        ["check-load", device, salt, log, ref rest @ ..] => check_load(device, number(salt), log,
            &load_of(rest)),
        ["model"] => model(),
        ["identify", device, salt] => identify(device, number(salt)),
        ["verify", device, salt] => verify(device, number(salt)),
        ["differ", a, b, sector] => differ(a, b, number(sector)),
        _ => {
            eprintln!("see the head of pattern.rs for the commands");
            exit(2);
        }
    }
}
