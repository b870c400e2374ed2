//! Writes of parts of blocks (T5), byte by byte: clients side by side, each with bytes of its own,
//! the blocks shared.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use ubcache_env::bytes::{self, ByteRange};
use ubcache_env::local::join_all;
use ubcache_env::{Buf, Env, Nanos, StreamId, Volume};
use ubcache_format::OwnPolicy;
use ubcache_sim::{DiskConfig, Rng, SimDisk, SimWorld, WorldConfig};

use support::{BUCKETS, STEP, format, open};

const BLOCK: u64 = 4096;
/// Bytes of a client; neither sectors nor blocks.
const OWN: u64 = 1500;
const CLIENTS: u64 = 24;
const BYTES: u64 = (CLIENTS * OWN).next_multiple_of(BLOCK);

/// Bug: the NBD server refused what was no multiple of the block; served by reading, changing and
/// writing alone, a write would take a neighbour's back that was answered meanwhile. Fix: T5.
#[test]
fn neighbours_in_a_block_keep_their_bytes() {
    for seed in 0..12 {
        for mode in ["writethrough", "writeback", "writearound", "none"] {
            for detached in [false, true] {
                run(seed, mode, detached);
            }
        }
    }
}

fn run(seed: u64, mode: &'static str, detached: bool) {
    let world = SimWorld::new(WorldConfig::new(seed));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
    let config = DiskConfig::new("backing", 16 + BYTES / 512);
    let backing = SimDisk::new(&world, DiskConfig { block_bytes: BLOCK as u32, ..config });
    {
        let (cache, backing) = (cache.clone(), backing.clone());
        world.run(async move { format(&cache, &backing, OwnPolicy::None).await }).expect("formats");
    }
    let env = world.new_instance();
    let handle = env.clone();
    let devices = (cache.clone(), backing.clone());
    let written = world
        .run(async move {
            let (set, volume) = open(&env, &devices.0, &devices.1).await;
            volume.set_attribute("cache_mode", mode).expect("sets");
            if detached {
                set.detach(&volume).await.expect("detaches");
            }
            let content = Rc::new(RefCell::new(vec![0; BYTES as usize]));
            join_all((0..CLIENTS).map(|client| {
                let (volume, env, content) = (volume.clone(), env.clone(), content.clone());
                let dice = Rng::new(seed * CLIENTS + client);
                async move { one_client(&env, &volume, &content, client, dice).await }
            }))
            .await;
            volume.flush(StreamId(0)).await.expect("flushes");
            content.borrow().clone()
        })
        .expect("the clients end");
    world.kill(&handle);
    cache.power_failure();
    backing.power_failure();
    let env = world.new_instance();
    let found = world
        .run(async move {
            let (_set, volume) = open(&env, &cache, &backing).await;
            let all = ByteRange::new(0, BYTES, BLOCK);
            bytes::read(&*volume, StreamId(0), all).await.expect("reads").to_buf()
        })
        .expect("the last look");
    assert!(found.as_slice() == written, "seed {seed}, {mode}: after a power failure");
}

async fn one_client<E: Env, V: Volume>(
    env: &E,
    volume: &Rc<V>,
    content: &RefCell<Vec<u8>>,
    client: u64,
    mut dice: Rng,
) {
    let stream = StreamId(client);
    for step in 0..40_u64 {
        let start = client * OWN + dice.below(OWN);
        let length = 1 + dice.below((client + 1) * OWN - start);
        let range = ByteRange::new(start, length, BLOCK);
        let own = start as usize..(start + length) as usize;
        match dice.below(8) {
            0..4 => {
                let value = (step + client * 41) as u8;
                let data = Buf::from_bytes(&vec![value; length as usize]);
                let fua = dice.chance(1, 8);
                bytes::write(&**volume, stream, range, data.into(), fua).await.expect("writes");
                content.borrow_mut()[own].fill(value);
            }
            4 => {
                let done = bytes::write_zeroes(&**volume, stream, range, false, step % 2 == 0);
                done.await.expect("zeroes");
                content.borrow_mut()[own].fill(0);
            }
            5 => env.sleep(Nanos::from_micros(dice.scale(1, 3000))).await,
            _ => {
                let found = bytes::read(&**volume, stream, range).await.expect("reads").to_buf();
                let expected = &content.borrow()[own];
                assert!(found.as_slice() == expected, "client {client}, step {step}");
            }
        }
    }
}
