//! Volumes that move to another disk while their clients go on (A11).

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_engine::{EngineError, MoveEnd, MoveNames, NotMoved};
use ubcache_env::local::Event;
use ubcache_env::{Buf, Device, Priority, Sector, SectorRange};
use ubcache_format::{
    MoveRecord, MoveRole, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock,
};

use super::backing::{Backing, open_backing};
use super::daemon::{Daemon, Served};
use super::moving::Moving;
use super::world::World;
use crate::backing::is_uri;
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::open::probe::probe;
use crate::open::target::{Access, Target};
use crate::size::show_size;

/// Sectors that are made zero in one request.
const ZEROES: u64 = 2048;
/// Bytes that are copied while clients wait for the switch, at most.
const LEFT_BYTES_MAX: u64 = 64 << 20;

/// A new disk with data on it, as far as it was looked at.
struct Look {
    /// Words about data that somebody may need.
    carries: Option<String>,
}

/// Options of a move.
pub(crate) struct MoveWishes {
    /// Overwrite the content of the new disk.
    pub force: bool,
    /// The answer comes when the volume has moved.
    pub wait: bool,
    /// Bytes a second that are copied at most; 0: no limit; `None`: as before.
    pub rate: Option<u64>,
}

impl<W: World> Daemon<W> {
    /// Moves a volume to another disk; returns words about it, when it has moved or at once. The
    /// move goes on without whoever asked for it.
    pub(crate) async fn move_backing(
        self: &Rc<Self>,
        volume: &str,
        to: &Path,
        MoveWishes { force, wait, rate }: MoveWishes,
    ) -> Result<String, Refusal> {
        if self.is_flash(volume) {
            let said = format_args!("{volume} is flash-only: it has no disk").to_string();
            return Err(Refusal::new(Kind::Conflict, said));
        }
        let served = self.only(Some(volume))?;
        let volume = &served.name;
        if served.path == to {
            return Ok(format!("{volume}: is on {} already", to.display()));
        }
        let moving = match self.move_of(volume) {
            Some(moving) if moving.to == to => moving,
            Some(moving) => {
                let said = format_args!("{volume} is being moved to {}", moving.to.display());
                return Err(Refusal::new(Kind::Conflict, said)
                    .advice(format_args!("wait for its end, or: ubcache move {volume} --cancel")));
            }
            None => self.begin_move(volume, to, force).await?,
        };
        if let Some(rate) = rate.filter(|rate| *rate != moving.engine.rate()) {
            moving.engine.set_rate(rate);
            tracing::info!(export = volume, bytes_per_second = rate, "speed of the move");
        }
        if !wait {
            return Ok(format!("{volume}: moves to {}; `ubcache status` shows it", to.display()));
        }
        moving.ended.wait().await;
        let result = moving.result.borrow().clone();
        result.unwrap_or_else(|| Err(Refusal::new(Kind::Failed, "the move has no result")))
    }

    /// Ends a move without a switch; returns words about it.
    pub async fn cancel_move(&self, volume: &str) -> Result<String, Refusal> {
        let served = self.only(Some(volume))?;
        let Some(moving) = self.move_of(&served.name) else {
            let said = format_args!("{} is not being moved", served.name).to_string();
            return Err(Refusal::new(Kind::Conflict, said));
        };
        moving.engine.give_up().await;
        moving.ended.wait().await;
        match moving.result.borrow().as_ref() {
            Some(Ok(said)) => Err(Refusal::new(Kind::Conflict, said).found("it was too late")),
            _ => Ok(format!("{}: stays on {}", served.name, served.path.display())),
        }
    }

    /// Has all moves copy nothing more, for a stop: the next run goes on with them. Returns the new
    /// disks, to be closed when the set has stopped: until then what changes goes there as well.
    pub(crate) async fn suspend_moves(&self) -> Vec<Rc<Moving<W>>> {
        let moves = self.moves.borrow().clone();
        for moving in &moves {
            moving.engine.suspend();
            moving.ended.wait().await;
        }
        moves
    }

    /// Returns true while any volume is being moved.
    pub(crate) fn is_moving(&self) -> bool {
        !self.moves.borrow().is_empty()
    }

    async fn begin_move(
        self: &Rc<Self>,
        volume: &str,
        to: &Path,
        force: bool,
    ) -> Result<Rc<Moving<W>>, Refusal> {
        let _one = self.change_membership().await?;
        let served = self.only(Some(volume))?;
        if self.move_of(volume).is_some() {
            return Err(Refusal::new(Kind::Busy, format_args!("{volume} is being moved already")));
        }
        if let Some(why) = self.no_cache.borrow().as_ref() {
            let said = format_args!("there is no cache, which decides which disk counts: {why}");
            return Err(Refusal::new(Kind::Conflict, said));
        }
        self.is_no_member(to).await?;
        let carries = self.look_at(to, &served).await?.carries;
        if let Some(found) = carries.as_ref().filter(|_| !force) {
            let said = format_args!("{} has data, which a move overwrites", to.display());
            return Err(Refusal::new(Kind::Conflict, said)
                .found(found)
                .expected("an empty disk")
                .advice(format_args!(
                    "to overwrite it: ubcache move {volume} {} --force",
                    to.display()
                )));
        }
        let opened = open_backing(self.world.host(), &self.config, (to, None), None).await;
        let Backing { device, lost, remote, header } = opened.map_err(|why| refusal(&why))?;
        if remote.as_ref().is_some_and(|remote| remote.may_write_late()) {
            self.late_writes.pass(&self.world).await;
        }
        let next = Served {
            name: served.name.clone(),
            volume: served.volume.clone(),
            path: to.to_owned(),
            lost,
            remote,
            header,
        };
        let names =
            MoveNames { old: served.path.display().to_string(), new: to.display().to_string() };
        let data_at = served.now().data_offset();
        let begun = match clear_head(&device, data_at).await {
            Ok(()) => self
                .set_of(&served)
                .begin_move(&served.now(), self.world.backing(device), names)
                .await
                .map_err(|error| no_move(&served.name, to, &error)),
            Err(error) => {
                Err(Refusal::new(Kind::Failed, format_args!("{}: {error}", to.display())))
            }
        };
        let engine = match begun {
            Ok(engine) => engine,
            Err(refusal) => {
                close(&next).await;
                return Err(refusal);
            }
        };
        if self.stop_wanted.is_set() {
            // The stop waits for the moves that it has found.
            engine.give_up().await;
            close(&next).await;
            return Err(Refusal::new(Kind::Busy, "the set is being stopped"));
        }
        let progress = engine.progress();
        tracing::info!(
            export = volume,
            to = %to.display(),
            bytes = progress.total_bytes,
            copied_earlier = progress.earlier_bytes,
            "moving to another disk"
        );
        let moving = Rc::new(Moving {
            name: served.name.clone(),
            to: to.to_owned(),
            engine,
            began: self.world.now(),
            remote: next.remote.clone(),
            result: RefCell::default(),
            ended: Event::default(),
        });
        self.moves.borrow_mut().push(moving.clone());
        let (daemon, of_task) = (self.clone(), moving.clone());
        self.world.spawn(Priority::Background, async move {
            let result = daemon.carry_out_move(&of_task, served, next).await;
            match &result {
                Ok(said) => tracing::info!(export = of_task.name, "{said}"),
                Err(why) => tracing::error!(export = of_task.name, "not moved: {why}"),
            }
            *of_task.result.borrow_mut() = Some(result);
            daemon.moves.borrow_mut().retain(|other| !Rc::ptr_eq(other, &of_task));
            of_task.ended.set();
        });
        Ok(moving)
    }

    /// Copies, and switches.
    async fn carry_out_move(
        &self,
        moving: &Moving<W>,
        served: Rc<Served<W>>,
        next: Served<W>,
    ) -> Result<String, Refusal> {
        let to = &moving.to;
        let (_one, exchange) = loop {
            if let Err(error) = moving.engine.copy().await {
                let suspended = matches!(error, EngineError::MoveEnded(MoveEnd::Suspended));
                // A stop closes it.
                if !(suspended && self.stop_wanted.is_set()) {
                    close(&next).await;
                }
                return Err(no_move(&served.name, to, &error));
            }
            let one = self.membership.lock().await;
            let exchange = served.volume.exchange().await;
            // Discards meanwhile, which are copied: not while clients wait.
            if moving.engine.progress().left_bytes <= LEFT_BYTES_MAX {
                break (one, exchange);
            }
        };
        let volume = match self.set_of(&served).end_move(&moving.engine).await {
            Ok(volume) => volume,
            Err(NotMoved { error, volume }) => {
                volume.into_iter().for_each(|volume| exchange.replace(volume));
                drop(exchange);
                let suspended = matches!(error, EngineError::Stopping);
                if !(suspended && self.stop_wanted.is_set()) {
                    close(&next).await;
                }
                return Err(no_move(&served.name, to, &error));
            }
        };
        exchange.replace(volume);
        drop(exchange);
        let old = served.path.display().to_string();
        for other in self.volumes.borrow_mut().iter_mut().filter(|it| it.name == served.name) {
            *other = Rc::new(Served {
                name: next.name.clone(),
                volume: next.volume.clone(),
                path: next.path.clone(),
                lost: next.lost.clone(),
                remote: next.remote.clone(),
                header: next.header.clone(),
            });
        }
        self.publish();
        close(&served).await;
        let where_named = match &self.config.origin {
            Some(origin) => format!("{} still names {old}: change that", origin.file.display()),
            None => format!("the next start needs -B {}", to.display()),
        };
        let said = format!("{}: moved from {old} to {}; {where_named}", served.name, to.display());
        Ok(said)
    }

    /// Refuses a disk that the set has already.
    async fn is_no_member(&self, to: &Path) -> Result<(), Refusal> {
        let mut paths: Vec<PathBuf> = self.volumes().iter().map(|it| it.path.clone()).collect();
        paths.extend(self.moves.borrow().iter().map(|moving| moving.to.clone()));
        paths.push(self.cache_path.borrow().clone());
        match self.position_of(to, paths.clone().into_iter()).await {
            None => Ok(()),
            Some(at) => {
                let said = format_args!("{} is in use", to.display());
                Err(Refusal::new(Kind::Conflict, said)
                    .found(format_args!("{} is a device of this set", paths[at].display()))
                    .expected("another disk"))
            }
        }
    }

    /// Looks at the disk that a volume is to be moved to.
    async fn look_at(&self, to: &Path, served: &Served<W>) -> Result<Look, Refusal> {
        let path = to.to_owned();
        let (uuid, run) = (served.now().uuid(), served.now().run());
        let looked = self.world.host().blocking(move || {
            // A volume of an object store is created, if its URI has a size.
            let access = if is_uri(&path) { Access::Change } else { Access::Look };
            let target = Target::open(&path, access)?;
            if target.bytes < 16 * SECTOR_BYTES {
                return Ok(Look { carries: None });
            }
            let head = target.read_superblock_bytes()?;
            // A move was interrupted at its switch: the cache does not take this disk.
            let left = Superblock::parse(&head).is_ok_and(|found| {
                let number = found.run().number();
                found.uuid == uuid
                    && !found.is_cache()
                    && found.attempt(MoveRole::Target).is_some()
                    && number.is_some()
                    && number != run
            });
            if left {
                return Ok(Look { carries: None });
            }
            let carries = match MoveRecord::parse(&head) {
                // An earlier attempt, or a disk that this volume was on.
                Some(record) if record.uuid == uuid => None,
                Some(record) => Some(match record.role {
                    MoveRole::Target => format!("a part of the volume on {}", record.other),
                    MoveRole::Left => format!("a copy of the volume that is on {}", record.other),
                }),
                None => {
                    let found = probe(&target)?;
                    found.first().map(|it| format!("{} (byte {})", it.name, it.at))
                }
            };
            Ok(Look { carries })
        });
        let looked: Result<Look, Failure> = looked.await.unwrap_or(Ok(Look { carries: None }));
        looked.map_err(|why| match is_uri(to) || to.exists() {
            true => refusal(&why),
            false => refusal(&why).advice(format_args!(
                "make the file first, as large as the disk: truncate -s SIZE {}",
                to.display()
            )),
        })
    }
}

/// Makes what lies before the data of a volume zero, so that nothing takes it for something else.
/// The place of the superblock is the engine's: it may have a log, which counts only where the rest
/// is zero as an earlier attempt has left it. Another use of the disk since has written there.
async fn clear_head<D: Device>(device: &D, data_at: Sector) -> Result<(), String> {
    let end = data_at.0.min(device.limits().sectors);
    let own = SectorRange::new(SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES);
    let mut parts = vec![(0, own.start.0.min(end)), (own.end.0, end)];
    for (start, part_end) in parts.clone() {
        let sectors = part_end.saturating_sub(start).min(ZEROES);
        if sectors > 0 {
            let (found, read) = device.read(Sector(start), Buf::for_sectors(sectors)).await;
            read.map_err(|error| error.to_string())?;
            if found.as_slice().iter().any(|byte| *byte != 0) {
                parts = vec![(0, end)];
            }
        }
    }
    for (mut at, end) in parts {
        while at < end {
            let range = SectorRange::from_bounds(Sector(at), Sector(end.min(at + ZEROES)));
            device.write_zeroes(range).await.map_err(|error| error.to_string())?;
            at = range.end.0;
        }
    }
    Ok(())
}

/// Ends the use of a disk that is behind a network.
async fn close<W: World>(served: &Served<W>) {
    if let Some(remote) = &served.remote {
        remote.close().await;
    }
}

fn refusal(why: &Failure) -> Refusal {
    Refusal::new(Kind::Conflict, why)
}

/// The refusal for a volume that stays on its disk.
fn no_move(name: &str, to: &Path, error: &EngineError) -> Refusal {
    let said = format!("{name} was not moved to {}: {error}", to.display());
    let again = || format!("the same command goes on: ubcache move {name} {}", to.display());
    match error {
        EngineError::MoveEnded(MoveEnd::Suspended) => {
            let said = format_args!("{name} has not been moved yet: the set is being stopped");
            Refusal::new(Kind::Failed, said)
                .found("the volume stays on its old disk, and the new one has a part of it")
                .advice(format_args!("after the next start {}", again()))
        }
        EngineError::TooSmall { found, expected } => {
            Refusal::new(Kind::Conflict, format_args!("{} is too small for {name}", to.display()))
                .found(format_args!("{} bytes", found * SECTOR_BYTES))
                .expected(format_args!(
                    "at least {} bytes ({})",
                    expected * SECTOR_BYTES,
                    show_size(expected * SECTOR_BYTES)
                ))
        }
        EngineError::MoveEnded(_) | EngineError::Io { .. } => Refusal::new(Kind::Failed, said)
            .found("the volume goes on with its old disk")
            .advice(again()),
        _ => Refusal::new(Kind::Conflict, said),
    }
}
