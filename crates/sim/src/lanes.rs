//! Volumes whose clients are served by lanes: the code of production over an owner that is asked by
//! letters, which take their time.

use ubcache_engine::Exported;
use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, Env, IoResult, IoVec, LaneVolume, MappedRead, Nanos,
    Owner, ReadEnd, Sector, SectorRange, StreamEnd, StreamId, Volume, VolumeInfo, pass_on,
};
use ubcache_format::Uuid;

use crate::disk::SimDisk;
use crate::executor::SimEnv;

/// The longest way of a letter.
const WAY_MAX: Nanos = Nanos::from_micros(200);

/// A thread does not run for so long, at most, when it has mapped a read: mostly it does at once.
const PAUSE_MAX: Nanos = Nanos::from_millis(200);

/// A volume as clients see it, in a lane or not.
pub type ClientVolume = LaneVolume<SimEnv, Letters, LaneDisk>;

/// The cache device in the hands of a lane, whose thread runs when it pleases the scheduler.
pub struct LaneDisk {
    env: SimEnv,
    disk: SimDisk,
}

impl LaneDisk {
    /// A lane's handle to the disk.
    pub fn new(env: SimEnv, disk: SimDisk) -> LaneDisk {
        LaneDisk { env, disk }
    }
}

const READS_ONLY: &str = "a lane only reads";

impl Device for LaneDisk {
    fn limits(&self) -> DeviceLimits {
        self.disk.limits()
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        let draw = self.env.random();
        let pause = match draw % 8 {
            0 => Nanos(draw / 8 % PAUSE_MAX.0),
            _ => Nanos(0),
        };
        self.env.sleep(pause).await;
        self.disk.read(at, into).await
    }

    async fn write(&self, _: Sector, _: IoVec, _: Durability) -> IoResult {
        unreachable!("{READS_ONLY}")
    }

    async fn flush(&self) -> IoResult {
        unreachable!("{READS_ONLY}")
    }

    async fn discard(&self, _: SectorRange) -> IoResult {
        unreachable!("{READS_ONLY}")
    }

    async fn write_zeroes(&self, _: SectorRange) -> IoResult {
        unreachable!("{READS_ONLY}")
    }
}

/// The volume of the owner, as a lane asks for it.
pub struct Letters {
    env: SimEnv,
    volume: Exported<SimEnv>,
    /// False: clients are served where the owner is.
    are_sent: bool,
}

impl Letters {
    /// Letters to the owner of a volume, or calls if there are no lanes.
    pub fn new(env: SimEnv, volume: Exported<SimEnv>, are_sent: bool) -> Letters {
        Letters { env, volume, are_sent }
    }

    async fn way(&self) {
        if self.are_sent {
            self.env.sleep(Nanos(self.env.random() % WAY_MAX.0)).await;
        }
    }
}

/// A call that is a letter, and its answer.
macro_rules! letter {
    ($letters:expr, $call:ident($($argument:expr),*)) => {{
        $letters.way().await;
        let answer = $letters.volume.$call($($argument),*).await;
        $letters.way().await;
        answer
    }};
}

impl Volume for Letters {
    fn info(&self) -> VolumeInfo {
        self.volume.info()
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        self.volume.stream_ended(stream, end);
    }

    pass_on!(letter: read, read_into, write, write_foreign, write_bytes, discard, write_zeroes);
    pass_on!(letter: flush, prefetch, block_status);
}

impl Owner for Letters {
    fn map_read(&self, set: Uuid, stream: StreamId, range: SectorRange) -> Option<MappedRead> {
        if self.are_sent { self.volume.map_read(set, stream, range) } else { None }
    }

    fn end_read(&self, number: usize, end: ReadEnd) -> bool {
        self.volume.end_read(number, end)
    }
}
