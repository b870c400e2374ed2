//! Clients: tasks that do the operations of the plan and tell the oracle.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::local::Notify;
use ubcache_env::{
    Buf, Env, ForeignMemory, IoError, IoVec, Nanos, Sector, SectorRange, StreamId, Volume,
    VolumeError,
};

use crate::crash::Crash;
use crate::executor::SimEnv;
use crate::front::is_cut;
use crate::marks::Reached;
use crate::oracle::{Op, OpKind, Oracle};
use crate::plan::{Action, ClientOp, Hammer, VolumeShape};

/// The client number of the full reads between the operations of the plan.
pub(super) const CHECKER: u32 = 99;
/// The client number of those that the driver serves.
pub(super) const DRIVER: u32 = 98;
/// Writes of a client that never stops from one of its flushes to the next.
const HAMMER_FLUSH: u64 = 64;
/// Length of the reads of a full read at least; a large volume is read by so many reads at most.
pub(crate) const CHECK_SECTORS: u64 = 64;
pub(crate) const CHECK_READS: u64 = 128;

/// State that clients, runner and oracle share; survives crashes.
pub(super) struct Workload {
    pub(super) oracle: RefCell<Oracle>,
    pub(super) queues: RefCell<Vec<VecDeque<ClientOp>>>,
    /// Operations started so far.
    pub(super) started: Cell<u64>,
    /// No client begins another operation; the instance is about to be stopped.
    pub(super) paused: Cell<bool>,
    /// Operations and commands under way.
    pub(super) busy: Cell<u64>,
    /// Extremes that the clients have reached.
    pub(super) reached: Cell<Reached>,
    pub(super) shapes: Vec<VolumeShape>,
    pub(super) changed: Notify,
    /// True if a device may fail, so that an operation may.
    pub(super) errors_expected: Cell<bool>,
    pub(super) errors: Cell<u64>,
    /// Clients that never stop are at work.
    pub(super) hammering: Cell<u64>,
    /// Clients may end now.
    pub(super) hammered_enough: Cell<bool>,
    /// The system is being stopped, so that it may refuse requests.
    pub(super) stopping: Cell<bool>,
    /// The memory of writes changes under them.
    pub(super) scribble: bool,
    /// Writes to the flash-only volume may find no room.
    pub(super) may_fill: bool,
}

/// The error of a write without room.
const ENOSPC: i32 = 28;

impl Workload {
    pub(super) fn all_done(&self) -> bool {
        self.busy.get() == 0 && self.queues.borrow().iter().all(VecDeque::is_empty)
    }

    /// An instance is gone, its clients with it.
    pub(super) fn crashed(&self, now: Nanos, crash: Crash) {
        self.busy.set(0);
        self.hammering.set(0);
        self.stopping.set(false);
        self.paused.set(false);
        self.oracle.borrow_mut().crash(now, crash);
    }

    pub(super) fn reach(&self, change: impl FnOnce(&mut Reached)) {
        let mut reached = self.reached.get();
        change(&mut reached);
        self.reached.set(reached);
    }

    pub(super) fn outcome<T>(
        &self,
        what: &str,
        volume: u32,
        result: Result<T, VolumeError>,
    ) -> Result<T, String> {
        result.map_err(|error| {
            self.errors.set(self.errors.get() + 1);
            let full = self.may_fill
                && self.shapes[volume as usize].flash
                && error == VolumeError::Io(IoError::Os(ENOSPC));
            if !self.errors_expected.get() && !is_cut(&error) && !full {
                let report = format!("no device has failed, but a {what} has: {error}");
                self.oracle.borrow_mut().violation("an operation failed", report);
            }
            error.to_string()
        })
    }

    fn begin(
        &self,
        env: &SimEnv,
        client: u32,
        volume: u32,
        kind: OpKind,
        range: SectorRange,
    ) -> Op {
        self.oracle.borrow_mut().begin(env.now(), client, volume, kind, range)
    }
}

/// Runs the operations of one client until none is left, or until the clients are paused: those of
/// the next instance go on.
pub(super) async fn run_client<V: Volume>(
    env: SimEnv,
    workload: Rc<Workload>,
    volumes: Vec<Rc<V>>,
    client: u32,
) {
    // Clients that are paused end instead of waiting: each end of an operation would wake all of
    // them, and with thousands the run would consist of that.
    while !workload.paused.get() {
        let next = workload.queues.borrow_mut()[client as usize].pop_front();
        let Some(op) = next else { break };
        workload.started.set(workload.started.get() + 1);
        workload.busy.set(workload.busy.get() + 1);
        workload.reach(|reached| reached.requests = reached.requests.max(workload.busy.get()));
        workload.changed.notify_all();
        let errors = workload.errors.get();
        do_op(&env, &workload, &volumes[op.volume as usize], &op).await;
        if let Some(range) = op.action.range()
            && errors == workload.errors.get()
        {
            let shape = &workload.shapes[op.volume as usize];
            workload.reach(|reached| reached.answered(shape, range));
        }
        workload.busy.set(workload.busy.get() - 1);
        workload.changed.notify_all();
    }
    workload.changed.notify_all();
}

/// A client that writes the same range again and again, until everything else is done, or until the
/// system that is being stopped refuses it.
pub(super) async fn run_hammer<V: Volume>(
    env: SimEnv,
    workload: Rc<Workload>,
    volume: Rc<V>,
    client: u32,
    hammer: Hammer,
) {
    let Hammer { volume: index, range, period } = hammer;
    workload.hammering.set(workload.hammering.get() + 1);
    for turn in 1_u64.. {
        if workload.hammered_enough.get() {
            break;
        }
        let op = workload.begin(&env, client, index, OpKind::Write { fua: false }, range);
        let data = workload.oracle.borrow().content(&op);
        let result =
            volume.write(StreamId(u64::from(client)), range, IoVec::from(data), false).await;
        if result.is_err() && workload.stopping.get() {
            let result = result.map_err(|error| error.to_string());
            workload.oracle.borrow_mut().end(env.now(), op, &result);
            break;
        }
        let result = workload.outcome("write", index, result);
        workload.oracle.borrow_mut().end(env.now(), op, &result);
        // The oracle keeps apart what a crash may bring back.
        if turn.is_multiple_of(HAMMER_FLUSH) && !workload.stopping.get() {
            flush(&env, &workload, &volume, client, index).await;
        }
        env.sleep(period).await;
    }
    workload.hammering.set(workload.hammering.get() - 1);
    workload.changed.notify_all();
}

async fn do_op<V: Volume>(env: &SimEnv, workload: &Workload, volume: &Rc<V>, op: &ClientOp) {
    let ClientOp { client, volume: index, action } = op;
    let (client, index, stream) = (*client, *index, StreamId(u64::from(op.client)));
    match action {
        Action::Sleep(span) => env.sleep(*span).await,
        Action::Read(range) => {
            read(env, workload, volume, client, index, *range).await;
        }
        Action::Write { range, fua } if workload.scribble => {
            scribbled(env, workload, volume, (client, index), *range, *fua).await;
        }
        Action::Write { range, fua } => {
            let op = workload.begin(env, client, index, OpKind::Write { fua: *fua }, *range);
            let data = workload.oracle.borrow().content(&op);
            let result = volume.write(stream, *range, IoVec::from(data), *fua).await;
            let result = workload.outcome("write", index, result);
            workload.oracle.borrow_mut().end(env.now(), op, &result);
        }
        Action::Discard { range, fua } => {
            let op = workload.begin(env, client, index, OpKind::Discard { fua: *fua }, *range);
            let result =
                workload.outcome("discard", index, volume.discard(stream, *range, *fua).await);
            workload.oracle.borrow_mut().end(env.now(), op, &result);
        }
        Action::Zeroes { range, fua, unmap } => {
            let op = workload.begin(env, client, index, OpKind::Zeroes { fua: *fua }, *range);
            let result = volume.write_zeroes(stream, *range, *fua, *unmap).await;
            let result = workload.outcome("write of zeroes", index, result);
            workload.oracle.borrow_mut().end(env.now(), op, &result);
        }
        Action::Flush => flush(env, workload, volume, client, index).await,
        Action::Prefetch(range) => {
            let op = workload.begin(env, client, index, OpKind::Other("prefetch"), *range);
            let result = workload.outcome("prefetch", index, volume.prefetch(stream, *range).await);
            workload.oracle.borrow_mut().end(env.now(), op, &result);
        }
        Action::Status(range) => {
            let op = workload.begin(env, client, index, OpKind::Status, *range);
            let result = workload.outcome("block status", index, volume.block_status(*range).await);
            workload.oracle.borrow_mut().end_status(env.now(), op, &result);
        }
    }
}

/// A write whose memory changes under it. For the oracle it is two writes at the same time: one
/// that is answered, and one that nobody answers for, which took effect or did not. A sector is
/// whole: the guest writes it in one go.
async fn scribbled<V: Volume>(
    env: &SimEnv,
    workload: &Workload,
    volume: &Rc<V>,
    (client, index): (u32, u32),
    range: SectorRange,
    fua: bool,
) {
    let op = workload.begin(env, client, index, OpKind::Write { fua }, range);
    let other = workload.begin(env, client, index, OpKind::Write { fua: false }, range);
    let memory = {
        let oracle = workload.oracle.borrow();
        Scribbled { contents: [oracle.content(&op), oracle.content(&other)], env: env.clone() }
    };
    let result =
        volume.write_foreign(StreamId(u64::from(client)), range, Rc::new(memory), fua).await;
    let result = workload.outcome("write", index, result);
    let mut oracle = workload.oracle.borrow_mut();
    oracle.end(env.now(), other, &Err("scribbled".to_owned()));
    oracle.end(env.now(), op, &result);
}

/// Memory that holds, sector by sector, one content or the other whenever it is looked at.
struct Scribbled {
    contents: [Buf; 2],
    env: SimEnv,
}

impl ForeignMemory for Scribbled {
    fn copy(&self) -> Buf {
        let mut buf = Buf::from_bytes(self.contents[0].as_slice());
        let other = self.contents[1].as_slice().chunks_exact(512);
        for (into, other) in buf.as_mut_slice().chunks_exact_mut(512).zip(other) {
            if self.env.random() & 1 == 1 {
                into.copy_from_slice(other);
            }
        }
        buf
    }
}

async fn read<V: Volume>(
    env: &SimEnv,
    workload: &Workload,
    volume: &Rc<V>,
    client: u32,
    index: u32,
    range: SectorRange,
) {
    let op = workload.begin(env, client, index, OpKind::Read, range);
    let result =
        workload.outcome("read", index, volume.read(StreamId(u64::from(client)), range).await);
    workload.oracle.borrow_mut().end_read(env.now(), op, &result);
}

/// Reads every sector of every volume.
pub(super) async fn read_everything<V: Volume>(
    env: &SimEnv,
    workload: &Workload,
    volumes: &[Rc<V>],
) {
    for (index, volume) in (0..).zip(volumes) {
        let sectors = volume.info().sectors;
        let mut at = 0;
        let length =
            CHECK_SECTORS.max(sectors.div_ceil(CHECK_READS)).next_multiple_of(CHECK_SECTORS);
        while at < sectors {
            let end = (at + length).min(sectors);
            let range = SectorRange::from_bounds(Sector(at), Sector(end));
            read(env, workload, volume, CHECKER, index, range).await;
            at = end;
        }
    }
}

/// Flushes every volume.
pub(super) async fn flush_everything<V: Volume>(
    env: &SimEnv,
    workload: &Workload,
    volumes: &[Rc<V>],
) {
    for (index, volume) in (0..).zip(volumes) {
        flush(env, workload, volume, CHECKER, index).await;
    }
}

async fn flush<V: Volume>(
    env: &SimEnv,
    workload: &Workload,
    volume: &Rc<V>,
    client: u32,
    index: u32,
) {
    let mut op = workload.begin(env, client, index, OpKind::Flush, SectorRange::default());
    let result = volume.flush(StreamId(u64::from(client))).await;
    if result.as_ref().is_err_and(is_cut) {
        op = op.cut();
    }
    let result = workload.outcome("flush", index, result);
    workload.oracle.borrow_mut().end(env.now(), op, &result);
}
