//! Draws plans from seeds.
//!
//! Draws are in layers: first what kind of world (geometry, devices, schedule), then what kind of
//! load, then the load. Kinds are drawn so that rare conditions are common somewhere: some worlds
//! have one hot sector, some have tiny buckets, some crash all the time.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::faults::{add_faults, make_memory_scarce};
use super::frontend::add_frontend;
use super::pace::slow_down;
use super::space::make_space_scarce;
use super::sums::limit;
use super::{
    Action, AfterStart, CacheShape, ClientOp, Control, ControlAction, Frontend, Pace, Plan,
    Scarcity, Sums, VolumeShape,
};
use crate::disk::Profile;
use crate::executor::Policy;
use crate::rng::Rng;

const MODES: [&str; 4] = ["writeback", "writethrough", "writearound", "none"];

/// Sizes of drawn plans.
#[derive(Copy, Clone, Debug)]
pub struct DrawOptions {
    /// Client operations at most.
    pub ops_max: u64,
    /// True if devices fail.
    pub faults: bool,
    /// True if power fails and hosts restart.
    pub crashes: bool,
    /// True if backing devices are reached over the network wherever that can be.
    pub remotes: bool,
    /// Put backing devices on an object store in every plan that can have it.
    pub stored: bool,
}

impl Default for DrawOptions {
    fn default() -> DrawOptions {
        DrawOptions { ops_max: 600, faults: true, crashes: true, remotes: false, stored: false }
    }
}

/// The plan of a seed.
pub fn draw(seed: u64, options: DrawOptions) -> Plan {
    let rng = &mut Rng::fork(seed, "plan");
    let cache = draw_cache(rng);
    let volumes: Vec<VolumeShape> =
        (0..rng.pick(&[1, 1, 1, 2, 3])).map(|_| draw_volume(rng)).collect();
    let mut plan = Plan {
        seed,
        policy: rng.pick(&[Policy::Uniform, Policy::Fifo, Policy::Ranks, Policy::Queues]),
        poll_cost: Nanos(rng.pick(&[0, 500, 2_000])),
        timer_slop: Nanos(rng.pick(&[0, 50_000, 2_000_000])),
        last_crash: options.crashes && rng.chance(1, 2),
        cache,
        frontend: Frontend::Direct,
        volumes,
        faults: Vec::new(),
        lossy: Vec::new(),
        remotes: Vec::new(),
        stored: Vec::new(),
        memory: Scarcity::default(),
        pace: Pace::default(),
        hammers: Vec::new(),
        scribble: false,
        sums: Sums::default(),
        ops: Vec::new(),
        kept_bytes: 0,
        controls: Vec::new(),
        hands: Vec::new(),
    };
    plan.ops = draw_ops(&plan, rng, options);
    plan.controls = draw_controls(&plan, rng, options);
    if options.faults {
        add_faults(&mut plan, rng);
        make_memory_scarce(&mut plan, &mut Rng::fork(seed, "memory"));
    }
    add_frontend(&mut plan, &mut Rng::fork(seed, "frontend"));
    super::targeted::draw_targeted(&mut plan, options);
    super::generations::wrap(&mut plan, options);
    slow_down(&mut plan, &mut Rng::fork(seed, "pace"));
    super::handover::hand_over(&mut plan, &mut Rng::fork(seed, "handover"));
    super::many::many(&mut plan, &mut Rng::fork(seed, "many"));
    super::sizes::sizes(&mut plan, &mut Rng::fork(seed, "sizes"));
    super::starve::starve(&mut plan, &mut Rng::fork(seed, "starve"));
    super::early::read_early(&mut plan, &mut Rng::fork(seed, "early"));
    super::odd::make_discards_vague(&mut plan, &mut Rng::fork(seed, "discards"));
    super::odd::make_writers_scribble(&mut plan, &mut Rng::fork(seed, "scribble"));
    super::fragments::break_up(&mut plan, &mut Rng::fork(seed, "fragments"), options);
    super::chains::evict_behind(&mut plan, &mut Rng::fork(seed, "chains"), options);
    if options.faults {
        make_space_scarce(&mut plan, &mut Rng::fork(seed, "space"));
    }
    super::crowd::crowd(&mut plan, &mut Rng::fork(seed, "crowd"));
    super::sizes::far(&mut plan, &mut Rng::fork(seed, "far"));
    limit(&mut plan, &mut Rng::fork(seed, "sums"));
    super::copies::copy_fast(&mut plan, &mut Rng::fork(seed, "copies"));
    if options.faults {
        super::lossy::add_lossy_disks(&mut plan, &mut Rng::fork(seed, "lossy"));
    }
    if options.crashes {
        super::hands::add_hands(&mut plan, &mut Rng::fork(seed, "hands"));
        super::hands::add_foreign_writes(&mut plan, &mut Rng::fork(seed, "foreign"));
        super::hands::cut_served(&mut plan, &mut Rng::fork(seed, "served cuts"));
    }
    super::replace::replace(&mut plan, &mut Rng::fork(seed, "replace"));
    super::scrub::add_scrubs(&mut plan, &mut Rng::fork(seed, "scrub"));
    super::partial::cut_requests(&mut plan, &mut Rng::fork(seed, "partial"));
    super::tight::tighten(&mut plan, &mut Rng::fork(seed, "tight"), options);
    super::old_pointers::keep_old_pointers(&mut plan, &mut Rng::fork(seed, "old"), options);
    super::larger::grow(&mut plan, &mut Rng::fork(seed, "larger"));
    super::flash::add_flash(&mut plan, &mut Rng::fork(seed, "flash"));
    if options.crashes {
        super::death::add_deaths(&mut plan, &mut Rng::fork(seed, "death"));
    }
    if options.faults || options.remotes {
        super::remote::add_remotes(&mut plan, &mut Rng::fork(seed, "remote"), options.remotes);
    }
    super::remote::add_distance(&mut plan, &mut Rng::fork(seed, "distance"));
    // Not in other runs: the seeds that reach rare marks and find rare mutants stay as they are.
    if options.stored {
        super::stored::add_stored(&mut plan, &mut Rng::fork(seed, "stored"), options.stored);
    }
    super::moves::add_moves(&mut plan, &mut Rng::fork(seed, "moves"), options);
    super::smaller::shrink(&mut plan, &mut Rng::fork(seed, "smaller"));
    plan
}

fn draw_cache(rng: &mut Rng) -> CacheShape {
    let block_sectors = rng.pick(&[1, 1, 8]);
    let bucket_sectors = rng.pick(if block_sectors == 8 { &[16, 64] } else { &[8, 16, 64] });
    CacheShape {
        bucket_sectors,
        block_sectors,
        buckets: rng.pick(&[513, 513, 700, 1024, 2048]),
        node_keys: rng.pick(&[0, 4, 8, 30]),
        extents_in_memory: rng.pick(&[50, 500, 1 << 20]),
        lazy_start: rng.chance(1, 2),
        volatile: rng.chance(3, 4),
        discard: rng.chance(1, 2),
        profile: rng.pick(&[
            Profile::Fast,
            Profile::Fast,
            Profile::Jitter,
            Profile::Stall,
            Profile::Slow,
        ]),
        generations: CacheShape::ALL_GENERATIONS,
    }
}

fn draw_volume(rng: &mut Rng) -> VolumeShape {
    VolumeShape {
        sectors: rng.pick(&[256, 512, 1024, 4096]),
        mode: rng.pick(&MODES[..3]).to_owned(),
        initial: rng.pick(&[0, 500, 1000]),
        volatile: rng.chance(3, 4),
        discard: rng.chance(1, 2),
        noise: false,
        head: 0,
        block_sectors: rng.pick(&[1, 1, 8]),
        profile: rng.pick(&Profile::ALL),
        flash: false,
        distant: false,
    }
}

/// Habits of the clients of a run.
struct Taste {
    /// Weights: read, write, FUA write, discard, zeroes, flush, prefetch, status, sleep.
    weights: [u64; 9],
    hot: Vec<u64>,
    hot_share: u64,
    length_max: u64,
    sleep_max: u64,
}

fn draw_taste(rng: &mut Rng, sectors: u64) -> Taste {
    let often = |rng: &mut Rng, weight| if rng.chance(1, 3) { 0 } else { weight };
    Taste {
        weights: [
            rng.between(5, 60),
            rng.between(5, 60),
            often(rng, 6),
            often(rng, 6),
            often(rng, 6),
            often(rng, 8),
            often(rng, 3),
            1,
            often(rng, 10),
        ],
        hot: (0..rng.between(1, 6)).map(|_| rng.below(sectors)).collect(),
        hot_share: rng.pick(&[2, 5, 7, 8]),
        length_max: rng.pick(&[4, 16, 32, 128]),
        sleep_max: rng.pick(&[200, 5_000, 200_000, 5_000_000, 60_000_000]),
    }
}

fn draw_ops(plan: &Plan, rng: &mut Rng, options: DrawOptions) -> Vec<ClientOp> {
    let clients = rng.between(1, 6);
    let tastes: Vec<Taste> =
        plan.volumes.iter().map(|volume| draw_taste(rng, volume.sectors)).collect();
    let mut cursors = vec![0; clients as usize];
    let count = rng.scale(20, options.ops_max);
    (0..count)
        .map(|_| {
            let client = rng.below(clients) as u32;
            let volume = rng.below(plan.volumes.len() as u64) as u32;
            let block = plan.block_sectors(volume as usize);
            let sectors = plan.volumes[volume as usize].sectors;
            let taste = &tastes[volume as usize];
            let range = draw_range(rng, taste, sectors, block, &mut cursors[client as usize]);
            ClientOp { client, volume, action: draw_action(rng, taste, range) }
        })
        .collect()
}

fn draw_range(
    rng: &mut Rng,
    taste: &Taste,
    sectors: u64,
    block: u64,
    cursor: &mut u64,
) -> SectorRange {
    let length = rng.scale(1, taste.length_max);
    let start = match rng.below(10) {
        n if n < taste.hot_share => rng.pick(&taste.hot).saturating_sub(rng.below(length)),
        9 => *cursor,
        _ => rng.below(sectors),
    };
    let start = start.min(sectors - 1) / block * block;
    let end = (start + length).next_multiple_of(block).min(sectors);
    *cursor = if end == sectors { 0 } else { end };
    SectorRange::from_bounds(Sector(start), Sector(end))
}

fn draw_action(rng: &mut Rng, taste: &Taste, range: SectorRange) -> Action {
    let mut at = rng.below(taste.weights.iter().sum());
    let kind = taste.weights.iter().position(|&weight| match at.checked_sub(weight) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    });
    match kind.expect("the draw is below the sum") {
        0 => Action::Read(range),
        1 => Action::Write { range, fua: false },
        2 => Action::Write { range, fua: true },
        3 => Action::Discard { range, fua: rng.chance(1, 8) },
        4 => Action::Zeroes { range, fua: rng.chance(1, 8), unmap: rng.chance(1, 2) },
        5 => Action::Flush,
        6 => Action::Prefetch(range),
        7 => Action::Status(range),
        _ => Action::Sleep(Nanos::from_micros(rng.scale(1, taste.sleep_max))),
    }
}

fn draw_after(rng: &mut Rng) -> AfterStart {
    AfterStart {
        check: rng.chance(1, 2),
        again: rng.chance(1, 4).then(|| Nanos::from_micros(rng.scale(10, 100_000))),
    }
}

fn draw_controls(plan: &Plan, rng: &mut Rng, options: DrawOptions) -> Vec<Control> {
    let ops = plan.ops.len() as u64;
    let count = rng.pick(&[0, 2, 4, 8, 16]).min(ops / 4);
    let crash_weight = if options.crashes { rng.pick(&[0, 3, 10]) } else { 0 };
    let mut moments: Vec<u64> = (0..count).map(|_| rng.below(ops)).collect();
    moments.sort_unstable();
    let mut controls: Vec<Control> = moments
        .into_iter()
        .map(|after_ops| {
            let delay =
                if rng.chance(1, 4) { rng.scale(1, 3_000_000) } else { rng.scale(1, 3_000) };
            let kind = rng.below(12 + 2 * crash_weight);
            let action = match kind {
                0..=4 => draw_attribute(plan, rng),
                5..=6 => ControlAction::CollectGarbage,
                7..=9 => ControlAction::EvictClean,
                10..=11 => {
                    ControlAction::Restart(AfterStart { check: rng.chance(1, 2), again: None })
                }
                _ if kind < 12 + crash_weight => ControlAction::PowerFailure(draw_after(rng)),
                _ => ControlAction::HostRestart(draw_after(rng)),
            };
            Control { after_ops, delay: Nanos::from_micros(delay), action }
        })
        .collect();
    // Away from the cache, and back to it unless a restart does that. Each time takes a slot of the
    // volume table for good, and small buckets have few.
    if count > 0 && rng.chance(1, 6) {
        let volume = rng.below(plan.volumes.len() as u64) as u32;
        for _ in 0..rng.between(1, 4) {
            let at = rng.below(controls.len() as u64 + 1) as usize;
            let after_ops = controls.get(at).map_or(ops, |control| control.after_ops);
            for (name, most) in [("attach", 300_000), ("detach", 3_000)] {
                let delay = Nanos::from_micros(rng.scale(1, most));
                let action = ControlAction::Attribute {
                    volume,
                    name: name.to_owned(),
                    value: "1".to_owned(),
                };
                controls.insert(at, Control { after_ops, delay, action });
            }
        }
    }
    // Data that an instance finds after a host restart is not durable yet: the power goes before it
    // is.
    let mut at = 0;
    while at < controls.len() {
        let restart = matches!(controls[at].action, ControlAction::HostRestart(_));
        at += 1;
        if restart && rng.chance(1, 3) {
            let after_ops = controls[at - 1].after_ops + rng.below(8);
            let delay = Nanos::from_micros(rng.scale(1, 3_000));
            controls.insert(
                at,
                Control { after_ops, delay, action: ControlAction::PowerFailure(draw_after(rng)) },
            );
            at += 1;
        }
    }
    controls
}

fn draw_attribute(plan: &Plan, rng: &mut Rng) -> ControlAction {
    let (name, value) = match rng.below(8) {
        0..=3 => ("cache_mode", rng.pick(&MODES)),
        4 => ("sequential_cutoff", rng.pick(&["0", "4096", "16384", "4194304"])),
        5 => ("writeback_percent", rng.pick(&["0", "1", "10", "40"])),
        6 => ("writeback_delay", rng.pick(&["0", "1", "30"])),
        _ => ("writeback_running", rng.pick(&["0", "1"])),
    };
    let volume = rng.below(plan.volumes.len() as u64) as u32;
    ControlAction::Attribute { volume, name: name.to_owned(), value: value.to_owned() }
}
