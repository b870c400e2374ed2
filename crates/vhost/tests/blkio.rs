//! An independent client: the crate `blkio`, with a driver and messages of its own.

mod support;

use std::mem::MaybeUninit;

use blkio::{Blkio, Blkioq, Completion, ReqFlags};
use support::{SECTORS, serve};

const REQUEST_BYTES: usize = 256 << 10;

fn complete(queue: &mut Blkioq, count: usize) -> Vec<(usize, i32)> {
    let mut done = Vec::new();
    while done.len() < count {
        let mut room = [const { MaybeUninit::<Completion>::uninit() }; 32];
        let found = queue.do_io(&mut room, 1, None, None).expect("completions");
        for completion in &room[..found] {
            // SAFETY: the queue has filled so many.
            let completion = unsafe { completion.assume_init_ref() };
            done.push((completion.user_data, completion.ret));
        }
    }
    done
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn blkio_finds_what_it_wrote() {
    serve(|server| {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").expect("the driver");
        let path = server.path().to_str().expect("a plain path");
        blkio.set_str("path", path).expect("set");
        blkio.connect().expect("connected");
        assert_eq!(blkio.get_u64("capacity").expect("a size"), SECTORS * 512);
        assert_eq!(blkio.get_i32("request-alignment").expect("an alignment"), 512);
        let mut queue = blkio.start().expect("started").queues.remove(0);
        let region = blkio.alloc_mem_region(32 * REQUEST_BYTES).expect("memory");
        blkio.map_mem_region(&region).expect("mapped");
        let slot = |index: usize| (region.addr + index * REQUEST_BYTES) as *mut u8;
        let mut model = vec![0_u8; (SECTORS * 512) as usize];
        let mut random = Random(0x5eed);
        for round in 0..60 {
            // Disjoint ranges: each slot has its own part of the volume.
            let part = model.len() / 32;
            let mut started = Vec::new();
            for index in 0..32 {
                let len = (random.below((REQUEST_BYTES / 512) as u64) as usize + 1) * 512;
                let start = random.below(((part - len) / 512) as u64) as usize * 512 + index * part;
                let kind = random.below(8);
                let at = start as u64;
                match kind {
                    0..3 => {
                        let value = random.below(256) as u8;
                        // SAFETY: the slot has room, and belongs to no request.
                        unsafe { slot(index).write_bytes(value, len) };
                        queue.write(at, slot(index), len, index, ReqFlags::empty());
                        model[start..start + len].fill(value);
                    }
                    3 => {
                        queue.write_zeroes(at, len as u64, index, ReqFlags::empty());
                        model[start..start + len].fill(0);
                    }
                    4 => {
                        queue.discard(at, len as u64, index, ReqFlags::empty());
                        model[start..start + len].fill(0);
                    }
                    5 if index == 0 => queue.flush(index, ReqFlags::empty()),
                    _ => {
                        // SAFETY: as above.
                        unsafe { slot(index).write_bytes(0xee, len) };
                        queue.read(at, slot(index), len, index, ReqFlags::empty());
                        started.push((index, start, len));
                    }
                }
            }
            for (index, outcome) in complete(&mut queue, 32) {
                assert_eq!(outcome, 0, "request {index} of round {round}");
            }
            for (index, start, len) in started {
                // SAFETY: the request has ended, and filled so many bytes.
                let found = unsafe { std::slice::from_raw_parts(slot(index), len) };
                assert!(found == &model[start..start + len], "round {round}, {start} + {len}");
            }
        }
        queue.read(SECTORS * 512, slot(0), 512, 0, ReqFlags::empty());
        assert_ne!(complete(&mut queue, 1)[0].1, 0, "a read behind the end fails");
        assert!(server.content(0, model.len()) == model);
    });
}
