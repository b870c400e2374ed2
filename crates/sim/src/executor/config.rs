//! The world as it is asked for: its seed, its policy, its costs and its limits.

use ubcache_env::Nanos;

/// Choice of the task that runs next.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Any runnable task, all equally likely.
    Uniform,
    /// Runnable tasks, in the order in which they became runnable.
    Fifo,
    /// The runnable task with the highest random rank; at random moments the one that runs falls to
    /// the last rank. Finds orders that need one task to stand still for long.
    Ranks,
    /// Foreground before journal before background, most of the time: like the real executor.
    Queues,
}

/// Configuration of a world.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Decides everything.
    pub seed: u64,
    /// Choice of the task that runs next.
    pub policy: Policy,
    /// A poll takes up to this much virtual time.
    pub poll_cost: Nanos,
    /// A timer fires up to this much late.
    pub timer_slop: Nanos,
    /// More polls than this are a livelock.
    pub max_steps: u64,
    /// More virtual time than this is a livelock.
    pub max_time: Nanos,
    /// A step of a loop that the program counts takes this much virtual time.
    pub step_cost: Nanos,
    /// A poll of more steps than this is a violation.
    pub poll_steps_max: u64,
    /// An instance that holds more bytes of buffers for I/O after a poll is a violation.
    pub buffers_max: u64,
    /// Keep a row for every device event.
    pub verbose: bool,
}

impl WorldConfig {
    /// The usual world for a seed.
    pub fn new(seed: u64) -> WorldConfig {
        WorldConfig {
            seed,
            policy: Policy::Uniform,
            poll_cost: Nanos(500),
            timer_slop: Nanos(50_000),
            max_steps: 2_000_000,
            max_time: Nanos::from_secs(7 * 24 * 3600),
            step_cost: Nanos(0),
            poll_steps_max: u64::MAX,
            buffers_max: u64::MAX,
            verbose: false,
        }
    }
}
