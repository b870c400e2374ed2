//! Processor time of the calling thread, and of another process: what others on the machine do does
//! not count, except through its caches.

use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};

/// Processor time that this thread has used.
pub fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Processor time that a process has used, kernel threads that work for it included; in steps of a
/// clock tick.
pub fn of_process(pid: u32) -> Result<Duration, String> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The name of the program is in brackets, and may hold anything.
    let fields = text.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> =
        fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    // The first word after the name is field 3; utime and stime are fields 14 and 15.
    let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) else {
        return Err(format!("{path} makes no sense"));
    };
    Ok(Duration::from_secs_f64((user + system) as f64 / clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_grows_with_work() {
        let (thread, process) =
            (of_thread(), of_process(std::process::id()).expect("this process runs"));
        // Until both have moved: the clock of a process moves in ticks.
        let mut work = 1_u64;
        while of_thread() - thread < Duration::from_millis(1)
            || of_process(std::process::id()).expect("this process runs") <= process
        {
            work = std::hint::black_box(work.wrapping_mul(3));
        }
        assert!(of_process(u32::MAX).is_err(), "there is no such process");
    }
}
