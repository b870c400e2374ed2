//! Detection of an idle set, which is drained at full speed. bcache behaviour.

/// Detects an idle set: counts the controller updates of all its volumes since the last request to
/// any.
#[derive(Copy, Clone, Debug, Default)]
pub struct IdleCounter {
    ticks: u64,
}

impl IdleCounter {
    /// Ticks until a set with one volume is idle.
    const TICKS: u64 = 6;

    /// A counter of a set that was busy just now.
    pub fn new() -> Self {
        IdleCounter::default()
    }

    /// A request has arrived at a volume of the set.
    pub fn request(&mut self) {
        self.ticks = 0;
    }

    /// One volume's controller is about to update; says whether the set is idle. Each of the
    /// `attached` volumes ticks, so the count to reach grows with the square: about `6 · attached`
    /// periods of time.
    pub fn tick(&mut self, attached: u64) -> bool {
        self.ticks = self.ticks.saturating_add(1);
        self.ticks >= Self::TICKS.saturating_mul(attached.saturating_mul(attached).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_idle_after_six_ticks_per_volume_squared() {
        let mut idle = IdleCounter::new();
        assert!((0..5).all(|_| !idle.tick(1)));
        assert!(idle.tick(1) && idle.tick(1));
        idle.request();
        assert!((0..23).all(|_| !idle.tick(2)));
        assert!(idle.tick(2));
        idle.request();
        assert!(!idle.tick(0));
    }
}
