//! The disks of a run, prepared, and what the oracle knows of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::Distance;
use ubcache_env::local::Notify;

use super::RunOptions;
use super::client::Workload;
use crate::backings::Backings;
use crate::crash::SimKept;
use crate::disk::{DiskConfig, SimDisk};
use crate::executor::SimWorld;
use crate::far::Far;
use crate::oracle::Oracle;
use crate::oracle::value::{Value, stamp};
use crate::plan::{Plan, Remote, Stored};
use crate::remote::RemoteServer;
use crate::rng::Rng;
use crate::stored::VolumeStore;
use crate::system::{Setup, System, Word};

/// New disks for a plan, and what each sector of each volume holds at first.
pub(super) fn make_setup<S: System>(
    world: &SimWorld,
    plan: &Plan,
    options: RunOptions,
) -> (Rc<Setup>, Vec<Vec<Value>>) {
    let shape = &plan.cache;
    let cache = |name: &str| {
        SimDisk::new(
            world,
            DiskConfig {
                name: name.to_owned(),
                sectors: u64::from(shape.bucket_sectors) * u64::from(shape.buckets),
                block_bytes: shape.block_sectors * 512,
                volatile_cache: shape.volatile,
                discard: shape.discard,
                noise: false,
                profile: shape.profile,
                distance: Distance::Local,
            },
        )
    };
    let first_cache = cache("cache");
    let mut rng = Rng::fork(plan.seed, "initial");
    let (mut backing, mut initial) = (Vec::new(), Vec::new());
    for (index, shape) in (0_u32..).zip(&plan.volumes) {
        let disk = SimDisk::new(
            world,
            DiskConfig {
                name: format!("backing{index}"),
                sectors: S::DATA_AT.0 + shape.head + shape.sectors,
                block_bytes: shape.block_sectors * 512,
                volatile_cache: shape.volatile,
                discard: shape.discard,
                noise: shape.noise,
                profile: shape.profile,
                distance: if shape.distant { Distance::Remote } else { Distance::Local },
            },
        );
        let mut values = vec![Value::ZERO; shape.sectors as usize];
        let mut bytes = [0; 512];
        for (group, chunk) in (0_u64..).zip(values.chunks_mut(8)) {
            if !rng.chance(u64::from(shape.initial), 1000) {
                continue;
            }
            for (sector, value) in (group * 8..).zip(chunk) {
                *value = Value::INITIAL;
                stamp(index, sector, Value::INITIAL, &mut bytes);
                disk.poke(S::DATA_AT + shape.head + sector, &bytes);
            }
        }
        backing.push(disk);
        initial.push(values);
    }
    let other = plan.moves().map(|volume| {
        let config = backing[volume].config().clone();
        let name = format!("other{volume}");
        // It may lose what the old disk can't.
        let disk = SimDisk::new(world, DiskConfig { name, volatile_cache: true, ..config });
        // Somebody's data, which is not to be seen.
        for sector in 0..plan.volumes[volume].sectors {
            let mut bytes = [0; 512];
            stamp(volume as u32, sector, Value::INITIAL, &mut bytes);
            disk.poke(S::DATA_AT + plan.volumes[volume].head + sector, &bytes);
        }
        (volume, disk)
    });
    let backing = Backings::new(backing, other);
    let server = |shape: &Remote| {
        let rules = options.client_rules;
        let server = RemoteServer::new(world, &backing[shape.volume], *shape, rules);
        (shape.volume, Far::Server(server))
    };
    let store = |shape: &Stored| {
        let rules = options.store_rules;
        let store = VolumeStore::new(world, &backing[shape.volume], *shape, rules);
        (shape.volume, Far::Store(store))
    };
    let (remotes, stored) = (plan.remotes.iter(), plan.stored.iter());
    let servers = remotes.map(server).chain(stored.map(store)).collect();
    let setup = Rc::new(Setup {
        plan: plan.clone(),
        servers,
        rules: options.rules,
        header_rules: options.header_rules,
        first_cache,
        spare: plan.replaces_cache().then(|| cache("spare")),
        replaced: Cell::new(false),
        kept: (plan.kept_bytes > 0).then(|| {
            let kept = || Rc::new(SimKept::new(plan.kept_bytes as usize));
            [kept(), kept()]
        }),
        kept_aside: Cell::new(false),
        backing,
        word: Word::default(),
    });
    S::prepare(&setup);
    (setup, initial)
}

/// Everything that clients share, before the first operation.
pub(super) fn make_workload(plan: &Plan, initial: Vec<Vec<Value>>) -> Workload {
    let mut queues = vec![VecDeque::new(); plan.clients() as usize];
    for op in &plan.ops {
        queues[op.client as usize].push_back(op.clone());
    }
    let volumes =
        (0..).zip(initial).map(|(index, values): (u32, _)| (format!("v{index}"), values)).collect();
    Workload {
        oracle: RefCell::new(Oracle::new(volumes)),
        queues: RefCell::new(queues),
        started: Cell::new(0),
        paused: Cell::new(false),
        busy: Cell::new(0),
        reached: Cell::default(),
        shapes: plan.volumes.clone(),
        changed: Notify::default(),
        errors_expected: Cell::new(plan.has_faults()),
        errors: Cell::new(0),
        hammering: Cell::new(0),
        hammered_enough: Cell::new(false),
        stopping: Cell::new(false),
        scribble: plan.scribble,
        may_fill: plan.may_fill(),
    }
}
