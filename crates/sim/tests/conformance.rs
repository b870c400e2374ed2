//! The simulated disk does what every other [`Device`](ubcache_env::Device) does: the script that
//! the devices of the real world pass (crates/host/tests/devices.rs), operation by operation,
//! results and errors.

use std::rc::Rc;

use ubcache_env::testing::{DEVICE_BYTES_MIN, device_conformance};
use ubcache_sim::{DiskConfig, Policy, Profile, SimDisk, SimWorld, WorldConfig};

fn conforms(seed: u64, policy: Policy, config: DiskConfig) {
    let world = SimWorld::new(WorldConfig { policy, ..WorldConfig::new(seed) });
    let disk = Rc::new(SimDisk::new(&world, config.clone()));
    let env = world.env();
    let result = world.run(async move { device_conformance(&env, disk).await });
    assert!(result.is_ok(), "{config:?}: {result:?}");
}

fn config(block_bytes: u32) -> DiskConfig {
    DiskConfig { block_bytes, ..DiskConfig::new("disk", DEVICE_BYTES_MIN / 512) }
}

#[test]
fn disk_with_small_blocks_conforms() {
    conforms(1, Policy::Uniform, config(512));
}

/// Requests do not complete in the order of submission.
#[test]
fn disk_with_large_blocks_conforms_without_discard_and_volatile_cache() {
    let config = DiskConfig {
        discard: false,
        volatile_cache: false,
        profile: Profile::Jitter,
        ..config(4096)
    };
    conforms(2, Policy::Ranks, config);
}
