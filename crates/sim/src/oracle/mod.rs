//! The judge: knows for every sector of every volume what a read may return.
//!
//! Clients report the begin and the end of every operation. The oracle keeps a
//! [`register::Register`] for each sector and a row for each operation. Violations are kept, not
//! thrown: the runner asks for them.

pub mod register;
mod report;
pub mod value;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ubcache_env::{BlockStatus, Buf, IoVec, Nanos, Sector, SectorRange};

use crate::crash::Crash;
use register::{Ending, Flushed, Keep, Moment, Register, STEP};
use report::Row;
use value::{Decoded, Value};

/// Violations kept at most.
const VIOLATIONS_MAX: usize = 8;

/// Request of a client.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// Read.
    Read,
    /// Write; `fua`: durable with its reply.
    Write {
        /// Durable with its reply.
        fua: bool,
    },
    /// Discard.
    Discard {
        /// Durable with its reply.
        fua: bool,
    },
    /// Write zeroes.
    Zeroes {
        /// Durable with its reply.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// Ask for holes, which have to read as zeroes.
    Status,
    /// Anything that changes no content.
    Other(&'static str),
}

impl OpKind {
    fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Write { fua: false } => "write",
            OpKind::Write { fua: true } => "write-fua",
            OpKind::Discard { .. } => "discard",
            OpKind::Zeroes { fua: false } => "zeroes",
            OpKind::Zeroes { fua: true } => "zeroes-fua",
            OpKind::Flush => "flush",
            OpKind::Status => "status",
            OpKind::Other(name) => name,
        }
    }
}

/// An operation that is under way.
#[derive(Debug)]
#[must_use = "an operation has to be ended"]
pub struct Op {
    /// Number of the operation; also what its write puts into the sectors.
    pub id: u64,
    volume: u32,
    client: u32,
    kind: OpKind,
    range: SectorRange,
    began: Moment,
    epoch: u64,
    /// The connection of the volume that it uses, if it needs one.
    connection: Option<u32>,
    /// It ends because that was cut, and no reply came.
    cut: bool,
}

impl Op {
    /// The connection was cut: its end is no reply.
    pub fn cut(self) -> Op {
        Op { cut: true, ..self }
    }
}

/// Something happened that must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Short name of the kind of violation, for grouping.
    pub kind: String,
    /// For a person to read.
    pub report: String,
}

#[derive(Clone)]
struct VolumeState {
    name: String,
    registers: Vec<Register>,
    /// Values last held before this moment do not come back after a crash.
    floor: Moment,
    /// When the reads under way began.
    reads: BTreeSet<Moment>,
    /// Flushes of the backing device that failed and lost, as the device counts them, and how many
    /// of them are known here.
    losses: Rc<Cell<u64>>,
    losses_known: u64,
    clients: BTreeMap<u32, ClientState>,
    /// When an error of a FLUSH last came over each connection.
    told_over: BTreeMap<u32, Moment>,
}

/// Failed flushes as a client of a volume knows them.
#[derive(Copy, Clone, Default)]
struct ClientState {
    /// When its first write began that no successful FLUSH of it has covered, and when its last
    /// one.
    wrote: Option<(Moment, Moment)>,
    /// Time of the last FLUSH that was answered with an error.
    told: Moment,
}

impl VolumeState {
    fn keep(&self) -> Keep {
        Keep {
            flushed: self.floor,
            oldest_read: self.reads.first().copied().unwrap_or(Moment::MAX),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Oracle {
    volumes: Vec<VolumeState>,
    rows: Vec<Row>,
    clock: Moment,
    /// Counts crashes, so that an operation cut by one is recognised.
    epoch: u64,
    violations: Vec<Violation>,
    /// Connections of each volume, if clients share some.
    connections: Option<u32>,
}

impl Oracle {
    /// An oracle for volumes with these names and initial contents, one value per sector.
    pub fn new(volumes: Vec<(String, Vec<Value>)>) -> Oracle {
        let volumes = volumes
            .into_iter()
            .map(|(name, values)| VolumeState {
                name,
                registers: values.into_iter().map(Register::new).collect(),
                floor: 0,
                reads: BTreeSet::new(),
                losses: Rc::default(),
                losses_known: 0,
                clients: BTreeMap::new(),
                told_over: BTreeMap::new(),
            })
            .collect();
        // Op 0 would be the value zero.
        let first = Row {
            client: 0,
            place: None,
            text: "note",
            note: "the run begins".to_owned(),
            begin: Nanos(0),
            end: None,
        };
        Oracle {
            volumes,
            rows: vec![first],
            clock: 1,
            epoch: 0,
            violations: Vec::new(),
            connections: None,
        }
    }

    /// A device that counts the failed flushes that may have cost what a volume had not flushed.
    pub fn watch_losses(&mut self, volume: usize, losses: Rc<Cell<u64>>) {
        self.volumes[volume].losses = losses;
    }

    /// Clients of one volume share so many connections, and are one client to it.
    pub fn share_connections(&mut self, connections: u32) {
        self.connections = Some(connections.max(1));
    }

    fn tick(&mut self) -> Moment {
        self.clock += STEP;
        for state in &mut self.volumes {
            if state.losses.get() > state.losses_known {
                state.losses_known = state.losses.get();
                let floor = state.floor;
                state
                    .registers
                    .iter_mut()
                    .for_each(|register| register.flush_failed(floor, self.clock));
                self.clock += STEP;
            }
        }
        self.clock
    }

    /// The FLUSH of a client has its reply.
    fn end_flush(&mut self, op: &Op, ok: bool, moment: Moment) {
        let state = &mut self.volumes[op.volume as usize];
        let client = state.clients.entry(op.client).or_default();
        if !ok {
            // A connection that is cut tells nothing of the device.
            if !op.cut {
                client.told = moment;
                if let Some(connection) = op.connection {
                    state.told_over.insert(connection, moment);
                }
            }
            return;
        }
        // Over a connection this FLUSH may have come after the error of another one had left.
        let crossed = op
            .connection
            .and_then(|connection| state.told_over.get(&connection))
            .copied()
            .unwrap_or(0);
        let (first, last) = client.wrote.unwrap_or((Moment::MAX, 0));
        let flush = Flushed { began: op.began, crossed, told: client.told, wrote: first };
        client.wrote = (last > op.began).then_some((op.began, last));
        state.floor = state.floor.max(op.began);
        if state.losses_known == 0 {
            return;
        }
        let denied = state.registers.iter_mut().position(|register| !register.flushed(flush));
        if let Some(sector) = denied {
            let name = &state.name;
            let report = format!(
                "a FLUSH was answered with success, op {}, over data that is gone: volume {name} \
                 sector {sector}",
                op.id
            );
            self.violation("a FLUSH denies a loss", report);
        }
    }

    /// A client begins an operation.
    pub fn begin(
        &mut self,
        now: Nanos,
        client: u32,
        volume: u32,
        kind: OpKind,
        range: SectorRange,
    ) -> Op {
        self.begin_with(now, client, (volume, range), kind, None)
    }

    /// An operation that a crash has cut off is carried out again. A write has these values, one
    /// for each sector.
    pub fn begin_again(
        &mut self,
        now: Nanos,
        client: u32,
        place: (u32, SectorRange),
        kind: OpKind,
        values: &[Value],
    ) -> Op {
        self.begin_with(now, client, place, kind, Some(values))
    }

    fn begin_with(
        &mut self,
        now: Nanos,
        client: u32,
        (volume, range): (u32, SectorRange),
        kind: OpKind,
        values: Option<&[Value]>,
    ) -> Op {
        let client_id = if self.connections.is_some() { 0 } else { client };
        let connection = self.connections.map(|connections| client % connections);
        let id = self.rows.len() as u64;
        let place = (!range.is_empty()).then_some((volume, range));
        let row =
            Row { client, place, text: kind.name(), note: String::new(), begin: now, end: None };
        self.rows.push(row);
        let began = self.tick();
        let state = &mut self.volumes[volume as usize];
        let write = match kind {
            OpKind::Read | OpKind::Status => {
                state.reads.insert(began);
                None
            }
            OpKind::Write { fua } => Some((Value(id), fua)),
            OpKind::Zeroes { fua } => Some((Value::ZERO, fua)),
            OpKind::Discard { .. } => Some((Value::ZERO, false)),
            OpKind::Flush | OpKind::Other(_) => None,
        };
        if let (OpKind::Write { .. }, Some(values)) = (kind, values) {
            assert_eq!(values.len() as u64, range.sectors(), "a value for each sector");
        }
        if let Some((value, fua)) = write {
            let wrote = &mut state.clients.entry(client_id).or_default().wrote;
            *wrote = Some((wrote.map_or(began, |(first, _)| first), began));
            for (index, register) in registers(state, range).iter_mut().enumerate() {
                let before = values.and_then(|values| values.get(index));
                register.begin_write(id, before.copied().unwrap_or(value), fua);
            }
        }
        let epoch = self.epoch;
        Op { id, volume, client: client_id, kind, range, began, epoch, connection, cut: false }
    }

    /// Content that a write has to write.
    pub fn content(&self, op: &Op) -> Buf {
        let mut buf = Buf::for_sectors(op.range.sectors());
        for (sector, bytes) in (op.range.start.0..).zip(buf.as_mut_slice().chunks_exact_mut(512)) {
            value::stamp(op.volume, sector, Value(op.id), bytes);
        }
        buf
    }

    /// An operation other than a read has its reply.
    pub fn end(&mut self, now: Nanos, op: Op, result: &Result<(), String>) {
        self.end_row(now, &op, result.as_ref().err());
        if op.epoch != self.epoch {
            return;
        }
        let moment = self.tick();
        if op.kind == OpKind::Flush {
            self.end_flush(&op, result.is_ok(), moment);
            return;
        }
        let state = &mut self.volumes[op.volume as usize];
        let ending = match op.kind {
            OpKind::Write { .. } | OpKind::Zeroes { .. } if result.is_ok() => Ending::Done,
            OpKind::Write { .. } | OpKind::Zeroes { .. } | OpKind::Discard { .. } => {
                Ending::Unknown
            }
            _ => return,
        };
        let keep = state.keep();
        for register in registers(state, op.range) {
            register.end_write(op.id, ending, moment, keep);
        }
    }

    /// A read has its reply.
    pub fn end_read(&mut self, now: Nanos, op: Op, result: &Result<IoVec, String>) {
        self.end_row(now, &op, result.as_ref().err());
        if op.epoch != self.epoch {
            return;
        }
        let moment = self.tick();
        let state = &mut self.volumes[op.volume as usize];
        state.reads.remove(&op.began);
        let Ok(data) = result else { return };
        if data.len() as u64 != op.range.bytes() {
            let kind = format!("a read of {} bytes returned {}", op.range.bytes(), data.len());
            self.violation("read of a wrong length", kind);
            return;
        }
        let keep = state.keep();
        let contiguous;
        let bytes = match data.parts() {
            [one] => one.as_slice(),
            _ => {
                contiguous = data.to_buf();
                contiguous.as_slice()
            }
        };
        let mut wrong = None;
        for (sector, bytes) in (op.range.start.0..).zip(bytes.chunks_exact(512)) {
            let seen = value::decode(op.volume, sector, bytes);
            let register = &mut state.registers[sector as usize];
            let fits = match &seen {
                Decoded::Value(value) => register.end_read(*value, op.began, moment, keep),
                Decoded::Wrong(_) => false,
            };
            if !fits && wrong.is_none() {
                wrong = Some((sector, seen));
            }
        }
        if let Some((sector, seen)) = wrong {
            let (kind, report) = self.report_read(&op, sector, &seen);
            self.violation(kind, report);
        }
    }

    /// The status of a range has come: a hole is as good as a read of zeroes.
    pub fn end_status(
        &mut self,
        now: Nanos,
        op: Op,
        result: &Result<Vec<(SectorRange, BlockStatus)>, String>,
    ) {
        self.end_row(now, &op, result.as_ref().err());
        if op.epoch != self.epoch {
            return;
        }
        let moment = self.tick();
        let state = &mut self.volumes[op.volume as usize];
        state.reads.remove(&op.began);
        let Ok(parts) = result else { return };
        let keep = state.keep();
        let holes = parts.iter().filter(|(_, status)| status.hole);
        let holes = holes.map(|(part, _)| part.intersect(&op.range));
        let mut sectors = holes.flat_map(|part| part.start.0..part.end.0);
        let wrong = sectors.find(|sector| {
            let register = &mut state.registers[*sector as usize];
            !register.end_read(Value::ZERO, op.began, moment, keep)
        });
        if let Some(sector) = wrong {
            let (kind, report) = self.report_read(&op, sector, &Decoded::Value(Value::ZERO));
            self.violation(kind, report);
        }
    }

    /// The instance that served the volumes is gone, with every operation under way.
    pub fn crash(&mut self, now: Nanos, crash: Crash) {
        self.note(now, crash.name().to_owned());
        let moment = self.tick();
        self.epoch += 1;
        for state in &mut self.volumes {
            state.reads.clear();
            // Clients that were served before know that this is over.
            state.clients.clear();
            state.told_over.clear();
            for register in &mut state.registers {
                register.crash(state.floor, crash, moment);
            }
        }
    }

    /// The instance was stopped in order: as good as a FLUSH of every client. Who is owed an error
    /// would have made the stop fail, and those who come now are clients of the next instance.
    pub fn stopped(&mut self) {
        let began = self.tick();
        let mut denied = None;
        for state in &mut self.volumes {
            state.told_over.clear();
            let clients = std::mem::take(&mut state.clients);
            if state.losses_known == 0 {
                continue;
            }
            for (client, ClientState { wrote, told }) in clients {
                let Some((wrote, _)) = wrote else { continue };
                let flush = Flushed { began, crossed: 0, told, wrote };
                let sector = state.registers.iter_mut().position(|it| !it.flushed(flush));
                denied = denied.or(sector.map(|sector| (state.name.clone(), sector, client)));
            }
        }
        if let Some((name, sector, client)) = denied {
            let report = format!(
                "a stop was good over data of client {client} that is gone: volume {name} sector \
                 {sector}"
            );
            self.violation("a stop denies a loss", report);
        }
    }

    /// A start failed, and so did a flush of it that may have lost what was not durable: as in a
    /// crash each sector has a value that nobody has to be told of, as nobody was served.
    pub fn start_lost(&mut self, now: Nanos) {
        self.note(now, "a failed flush of the start may have lost something".to_owned());
        let moment = self.tick();
        for state in &mut self.volumes {
            for register in &mut state.registers {
                register.crash(state.floor, Crash::Host, moment);
            }
        }
    }

    /// A line for the log that concerns everything.
    pub fn note(&mut self, now: Nanos, note: String) {
        self.rows.push(Row { client: 0, place: None, text: "note", note, begin: now, end: None });
    }

    /// Keeps a violation.
    pub fn violation(&mut self, kind: &str, report: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { kind: kind.to_owned(), report });
        }
    }

    /// Keeps violations that explain the others and come before them.
    pub fn blame(&mut self, kind: &str, reports: Vec<String>) {
        let blamed = reports.into_iter().map(|report| Violation { kind: kind.to_owned(), report });
        self.violations.splice(0..0, blamed);
    }

    /// Violations found so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Moves with every begin and end of an operation.
    pub fn moment(&self) -> Moment {
        self.clock
    }

    /// Operations of clients so far.
    pub fn operations(&self) -> usize {
        self.rows.len() - 1
    }

    fn end_row(&mut self, now: Nanos, op: &Op, error: Option<&String>) {
        let outcome = error.map_or_else(|| "ok".to_owned(), |error| format!("FAILED: {error}"));
        self.rows[op.id as usize].end = Some((now, outcome));
    }

    /// An inspection of the disks begins, with nothing running; for [`Oracle::judge_rest`].
    pub fn look(&mut self, now: Nanos) -> Moment {
        self.note(now, "the disks are looked at".to_owned());
        self.tick()
    }

    /// Judges the bytes that the disks hold for a sector when nothing runs: as good as a read by a
    /// client.
    pub fn judge_rest(
        &mut self,
        since: Moment,
        volume: u32,
        sector: u64,
        bytes: &[u8],
    ) -> Option<Violation> {
        let seen = value::decode(volume, sector, bytes);
        let state = &mut self.volumes[volume as usize];
        let keep = state.keep();
        let register = &mut state.registers[sector as usize];
        if matches!(&seen, Decoded::Value(value) if register.end_read(*value, since, since + 1,
            keep))
        {
            return None;
        }
        let allowed = register.allowed(since);
        Some(self.report_disks(
            "the disks hold what they must not",
            (volume, sector),
            &seen,
            &allowed,
        ))
    }

    /// The volume has changed by itself, from this sector on: it holds these values.
    pub fn adopt(&mut self, volume: u32, from: Sector, values: &[Value]) {
        let registers = &mut self.volumes[volume as usize].registers[from.0 as usize..];
        for (register, value) in registers.iter_mut().zip(values) {
            *register = Register::new(*value);
        }
    }

    /// The volume has changed in a way that is not foreseen: the first read decides.
    pub fn believe_what_is_read(&mut self, volume: u32) {
        self.volumes[volume as usize].registers.fill(Register::unknown());
    }

    /// Judges the bytes that a sector would read as if the program were gone now, or the power had
    /// failed.
    pub fn judge_survivor(&self, volume: u32, sector: u64, bytes: &[u8]) -> Option<Violation> {
        let state = &self.volumes[volume as usize];
        let register = &state.registers[sector as usize];
        let seen = value::decode(volume, sector, bytes);
        if matches!(&seen, Decoded::Value(value) if register.may_survive(*value, state.floor)) {
            return None;
        }
        let allowed = register.after_crash(state.floor);
        Some(self.report_disks(
            "I9: what was flushed would not survive",
            (volume, sector),
            &seen,
            &allowed,
        ))
    }
}

fn registers(state: &mut VolumeState, range: SectorRange) -> &mut [Register] {
    &mut state.registers[range.start.0 as usize..range.end.0 as usize]
}
