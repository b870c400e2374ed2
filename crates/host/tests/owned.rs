//! A volume of one thread that lanes on others use.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use ubcache_env::local::Event;
use ubcache_env::testing::MemoryVolume;
use ubcache_env::{
    Env, IoVec, MappedRead, Nanos, Owner, Priority, ReadEnd, Sector, SectorRange, StreamEnd,
    StreamId, Volume, VolumeInfo, pass_on,
};
use ubcache_format::Uuid;
use ubcache_host::{Host, IoBackend, OwnedVolume};

const BOTH: [IoBackend; 2] = [IoBackend::Auto, IoBackend::Pool];
const ONE: SectorRange = SectorRange { start: Sector(0), end: Sector(8) };
const SET: Uuid = Uuid([7; 16]);
const STREAM: StreamId = StreamId(1);

/// A volume that counts without atomics: it loses some if two threads are in it at a time.
struct Counting {
    volume: Rc<MemoryVolume>,
    mapped: Cell<u64>,
    ended: Cell<u64>,
    owner: ThreadId,
    dropped: Arc<AtomicBool>,
    /// Its next step panics.
    panics: Cell<bool>,
}

impl Counting {
    fn new(dropped: &Arc<AtomicBool>) -> Rc<Counting> {
        Rc::new(Counting {
            volume: MemoryVolume::new("v", 64),
            mapped: Cell::new(0),
            ended: Cell::new(0),
            owner: std::thread::current().id(),
            dropped: dropped.clone(),
            panics: Cell::new(false),
        })
    }

    fn count(cell: &Cell<u64>) {
        let before = cell.get();
        // Long enough for the other one to come between.
        (0..20).for_each(|_| std::hint::spin_loop());
        cell.set(before + 1);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        assert_eq!(std::thread::current().id(), self.owner, "it is dropped where it was made");
        self.dropped.store(true, Ordering::SeqCst);
    }
}

macro_rules! inner {
    ($counting:expr, $call:ident($($argument:expr),*)) => {
        $counting.volume.$call($($argument),*).await
    };
}

impl Volume for Counting {
    fn info(&self) -> VolumeInfo {
        self.volume.info()
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        self.volume.stream_ended(stream, end);
    }

    pass_on!(inner: read, write, write_bytes, discard, write_zeroes, flush, prefetch);
    pass_on!(inner: block_status);
}

impl Owner for Counting {
    fn map_read(&self, _: Uuid, _: StreamId, range: SectorRange) -> Option<MappedRead> {
        assert!(!self.panics.get(), "a fault of the engine");
        Counting::count(&self.mapped);
        Some(MappedRead { number: 0, at: range.start })
    }
    fn end_read(&self, _: usize, _: ReadEnd) -> bool {
        Counting::count(&self.ended);
        true
    }
}

/// Three lanes and tasks of the owner are in the volume by turns, and none of them is lost; the
/// owner waits in the kernel now and then.
#[test]
fn one_thread_at_a_time_is_in_the_volume() {
    const LANES: u64 = 3;
    const TIMES: u64 = 20_000;
    for backend in BOTH {
        let host = Host::new(backend).expect("a host");
        let (env, dropped) = (host.env(), Arc::default());
        let volume = Counting::new(&dropped);
        let owned = OwnedVolume::new(&env, volume.clone());
        let (all, done) = (Rc::new(Cell::new(0)), Rc::<Event>::default());
        let lanes: Vec<_> = (0..LANES)
            .map(|_| {
                let owned = owned.clone();
                std::thread::spawn(move || {
                    for _ in 0..TIMES {
                        let read = owned.map_read(SET, STREAM, ONE).expect("the owner is there");
                        assert!(owned.end_read(read.number, ReadEnd::Read(Nanos(1))));
                    }
                    owned.stream_ended(STREAM, StreamEnd::Orderly);
                })
            })
            .collect();
        for _ in 0..2 {
            let (env, volume) = (env.clone(), volume.clone());
            let (all, done) = (all.clone(), done.clone());
            let task = env.clone();
            env.spawn(Priority::Foreground, async move {
                for number in 0..TIMES {
                    volume.map_read(SET, STREAM, ONE).expect("it is here");
                    volume.end_read(0, ReadEnd::GivenUp);
                    match number % 64 {
                        0 => task.sleep(Nanos::from_micros(50)).await,
                        _ => task.yield_now().await,
                    }
                }
                all.set(all.get() + 1);
                if all.get() == 2 {
                    done.set();
                }
            });
        }
        host.block_on(done.wait());
        while lanes.iter().any(|lane| !lane.is_finished()) {
            host.block_on(env.sleep(Nanos::from_millis(1)));
        }
        lanes.into_iter().for_each(|lane| lane.join().expect("no lane has panicked"));
        // The last letters.
        host.block_on(env.sleep(Nanos::from_millis(1)));
        assert_eq!(volume.mapped.get(), (LANES + 2) * TIMES);
        assert_eq!(volume.ended.get(), (LANES + 2) * TIMES);
        drop((owned, volume));
        assert!(dropped.load(Ordering::SeqCst), "nothing holds it any more");
    }
}

/// A letter is carried out where the volume is, and its answer comes back; the last handle of a
/// lane sends the volume home to be dropped.
#[test]
fn letters_are_answered_and_volumes_go_home() {
    for backend in BOTH {
        let host = Host::new(backend).expect("a host");
        let dropped = Arc::<AtomicBool>::default();
        let owned = OwnedVolume::new(&host.env(), Counting::new(&dropped));
        let lane = std::thread::spawn(move || {
            let host = Host::new(backend).expect("a host");
            let read = host.block_on(owned.ask(|volume| async move {
                assert_eq!(std::thread::current().id(), volume.owner);
                volume.read(STREAM, ONE).await.map(IoVec::into_parcels)
            }));
            let read = read.expect("an answer").expect("memory can be read");
            assert_eq!(IoVec::from_parcels(read).sectors(), 8);
        });
        while !lane.is_finished() {
            host.block_on(host.env().sleep(Nanos::from_millis(1)));
        }
        lane.join().expect("the lane has its answer");
        host.block_on(host.env().sleep(Nanos::from_millis(1)));
        assert!(dropped.load(Ordering::SeqCst), "the volume has come home");
    }
}

/// An owner that has ended answers nothing, and says so: no lane waits for ever.
#[test]
fn ended_owners_answer_nothing() {
    for backend in BOTH {
        let (sender, receiver) = std::sync::mpsc::channel();
        let owner = std::thread::spawn(move || {
            let host = Host::new(backend).expect("a host");
            let owned = OwnedVolume::new(&host.env(), Counting::new(&Arc::default()));
            sender.send(owned).expect("the lane waits");
            host.block_on(host.env().sleep(Nanos::from_millis(20)));
        });
        let owned = receiver.recv().expect("a volume");
        let host = Host::new(backend).expect("a host");
        let mut asked = 0;
        while host
            .block_on(owned.ask(|volume| async move {
                volume.flush(STREAM).await.expect("memory");
            }))
            .is_some()
        {
            asked += 1;
        }
        println!("{asked} answers");
        owner.join().expect("it ends in good order");
        assert!(owned.map_read(SET, STREAM, ONE).is_none());
        assert!(owned.info().is_none());
        assert!(!owned.end_read(0, ReadEnd::GivenUp));
    }
}

/// A lane that panics beside the engine ends what it had mapped, and the owner goes on. One that
/// panics inside the engine leaves it half changed: the owner ends, and nobody gets anything.
#[test]
fn owners_outlive_lanes_that_panic_beside_the_engine_only() {
    struct Ends(Arc<OwnedVolume<Counting>>);
    impl Drop for Ends {
        fn drop(&mut self) {
            assert!(self.0.end_read(0, ReadEnd::GivenUp));
        }
    }
    for backend in BOTH {
        let (sender, receiver) = std::sync::mpsc::channel();
        let owner = std::thread::spawn(move || {
            let host = Host::new(backend).expect("a host");
            let volume = Counting::new(&Arc::default());
            sender.send(OwnedVolume::new(&host.env(), volume.clone())).expect("a lane");
            drop(sender);
            let for_a_moment = || host.block_on(host.env().sleep(Nanos::from_millis(1)));
            while volume.ended.get() == 0 {
                for_a_moment();
            }
            volume.panics.set(true);
            // An owner that does not notice ends in good order, which is the failure of this test.
            (0..10_000).for_each(|_| for_a_moment());
        });
        let owned = receiver.recv().expect("a volume");
        let beside = owned.clone();
        let lane = std::thread::spawn(move || {
            beside.map_read(SET, STREAM, ONE).expect("it is there");
            let _ends = Ends(beside);
            panic!("a fault of the lane");
        });
        assert!(lane.join().is_err());
        let inside = owned.clone();
        let lane = std::thread::spawn(move || {
            // Until the owner has noticed the end of the other read.
            while inside.map_read(SET, STREAM, ONE).is_some() {
                inside.end_read(0, ReadEnd::GivenUp);
            }
        });
        assert!(lane.join().is_err(), "it has panicked in the engine");
        assert!(owner.join().is_err(), "the owner does not go on");
        assert!(owned.map_read(SET, STREAM, ONE).is_none());
    }
}
