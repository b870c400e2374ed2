//! Histories of one sector, and what its register says to them.

use super::*;

const KEEP: Keep = Keep { flushed: 0, oldest_read: 0 };

const A: Value = Value(1);
const B: Value = Value(2);
const OLD: Value = Value::INITIAL;

#[test]
fn a_read_during_a_write_returns_old_or_new_but_never_old_after_new() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    assert!(register.end_read(OLD, 4, 8, KEEP));
    assert!(register.end_read(A, 12, 16, KEEP));
    assert!(register.clone().end_read(A, 20, 24, KEEP));
    assert!(!register.end_read(OLD, 20, 24, KEEP), "new, then old");
}

#[test]
fn overlapping_reads_may_return_in_any_order() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    assert!(register.end_read(A, 4, 16, KEEP));
    assert!(register.end_read(OLD, 8, 20, KEEP), "it began before the other ended");
}

#[test]
fn concurrent_writes_end_in_any_order_but_agree() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    register.begin_write(2, B, false);
    register.end_write(1, Ending::Done, 12, KEEP);
    register.end_write(2, Ending::Done, 16, KEEP);
    assert_eq!(register.allowed(20), [A, B]);
    assert!(register.end_read(A, 20, 24, KEEP));
    assert_eq!(register.allowed(28), [A]);
    assert!(!register.end_read(OLD, 28, 32, KEEP));
}

#[test]
fn a_failed_write_is_decided_with_its_reply() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    register.end_write(1, Ending::Unknown, 8, KEEP);
    let mut other = register.clone();
    assert!(register.end_read(OLD, 12, 16, KEEP));
    assert!(!register.end_read(A, 20, 24, KEEP), "nothing decides later");
    assert!(other.end_read(A, 12, 16, KEEP));
    assert!(!other.end_read(OLD, 20, 24, KEEP));
}

#[test]
fn a_crash_goes_back_to_the_last_flush_and_no_further() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    register.end_write(1, Ending::Done, 8, KEEP);
    // A flush began at 3 and completed; then a second write.
    register.begin_write(2, B, false);
    register.end_write(2, Ending::Done, 20, KEEP);
    assert_eq!(register.after_crash(0), [A, B, OLD]);
    assert_eq!(register.after_crash(12), [A, B]);
    let mut fua = register.clone();
    fua.begin_write(3, OLD, true);
    fua.end_write(3, Ending::Done, 28, KEEP);
    assert_eq!(fua.after_crash(12), [OLD]);
    register.crash(12, Crash::Power, 36);
    assert!(register.end_read(A, 40, 44, KEEP));
    assert!(!register.end_read(B, 48, 52, KEEP), "the choice is made once");
}

/// A volatile write that came after a FUA write, but before its reply, may survive a crash.
#[test]
fn a_fua_write_shields_what_comes_after_it() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, true);
    for (op, moment) in [(2, 4), (3, 8)] {
        register.begin_write(op, Value(op), false);
        register.end_write(op, Ending::Done, moment, KEEP);
    }
    register.end_write(1, Ending::Done, 12, KEEP);
    assert_eq!(register.after_crash(0), [A, B, Value(3)], "not the old value");
}

/// A write that a read has seen, but that had no reply, is not covered by a flush.
#[test]
fn a_flush_covers_only_what_was_acknowledged() {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    assert!(register.end_read(A, 4, 8, KEEP));
    assert_eq!(register.after_crash(12), [A, OLD]);
    register.end_write(1, Ending::Done, 16, KEEP);
    assert_eq!(register.after_crash(12), [A, OLD]);
    assert_eq!(register.after_crash(20), [A]);
}

/// A: written, answered at 8. A flush fails at 12.
fn shaken() -> Register {
    let mut register = Register::new(OLD);
    register.begin_write(1, A, false);
    register.end_write(1, Ending::Done, 8, KEEP);
    register.flush_failed(0, 12);
    register
}

#[test]
fn a_failed_flush_lets_a_value_fall_once() {
    let mut register = shaken();
    assert!(register.end_read(A, 16, 20, KEEP), "as long as the loss does not show");
    assert!(register.end_read(OLD, 24, 28, KEEP));
    assert!(!register.end_read(A, 32, 36, KEEP), "what is lost does not come back");
}

#[test]
fn successful_flush_of_an_uninformed_client_denies_the_loss() {
    let ignorant = Flushed { began: 16, crossed: 0, told: 0, wrote: 4 };
    let mut register = shaken();
    assert!(register.flushed(ignorant));
    assert!(!register.end_read(OLD, 24, 28, KEEP));
    let mut register = shaken();
    assert!(register.end_read(OLD, 24, 28, KEEP));
    assert!(!register.flushed(ignorant), "it was seen to be lost");
    for other in [Flushed { told: 14, ..ignorant }, Flushed { wrote: Moment::MAX, ..ignorant }] {
        let mut register = shaken();
        assert!(register.flushed(other));
        assert!(register.end_read(OLD, 24, 28, KEEP));
    }
}

#[test]
fn flush_under_way_at_the_loss_denies_it_unless_an_error_came_first() {
    let under_way = Flushed { began: 10, crossed: 0, told: 14, wrote: 4 };
    let mut register = shaken();
    assert!(register.flushed(under_way));
    assert!(!register.end_read(OLD, 24, 28, KEEP), "the error came over another connection");
    let mut register = shaken();
    assert!(register.flushed(Flushed { crossed: 14, ..under_way }));
    assert!(register.end_read(OLD, 24, 28, KEEP));
}

#[test]
fn write_over_a_loss_stays() {
    let mut register = shaken();
    register.begin_write(2, B, false);
    register.end_write(2, Ending::Done, 20, KEEP);
    assert!(!register.clone().end_read(OLD, 24, 28, KEEP));
    assert_eq!(register.after_crash(0), [A, B, OLD], "a power failure may still take it");
    assert_eq!(register.after_crash(24), [B]);
}

/// The floor that a successful FLUSH sets says nothing of a loss that its client knows of.
#[test]
fn lost_and_overwritten_value_may_return_in_a_crash() {
    let mut register = shaken();
    assert!(register.flushed(Flushed { began: 16, crossed: 0, told: 14, wrote: 4 }));
    register.begin_write(2, B, false);
    register.end_write(2, Ending::Done, 24, Keep { flushed: 16, ..KEEP });
    assert_eq!(register.after_crash(16), [A, B, OLD]);
}

/// Each of twelve writes under way may be the last to take effect. Ways in which they may have
/// taken effect were left out once there were too many; now they are merged before that.
#[test]
fn each_of_many_overlapping_writes_may_be_the_last() {
    let last = |seen: u64| {
        let mut register = Register::new(OLD);
        for op in 1..=12 {
            register.begin_write(op, Value(op), false);
        }
        // Memory that changes makes a write two, and one of them has an unknown end.
        for op in 1..=12 {
            let ending = if op % 2 == 0 { Ending::Unknown } else { Ending::Done };
            register.end_write(op, ending, op * STEP, KEEP);
        }
        assert!(register.is_quiet() && !register.lost_track);
        assert!(register.end_read(Value(seen), 52, 56, KEEP), "op {seen}");
        assert_eq!(register.allowed(60), [Value(seen)]);
    };
    (1..=12).for_each(last);
}

/// With more than it can follow the register accepts what it must not refuse.
#[test]
fn register_with_too_many_overlapping_writes_accepts_any_value_until_it_is_quiet() {
    let mut register = Register::new(OLD);
    for op in 1..=24 {
        register.begin_write(op, Value(op), false);
    }
    for op in 1..=24 {
        register.end_write(op, Ending::Done, op * STEP, KEEP);
    }
    assert!(register.end_read(Value(1), 100, 104, KEEP));
    assert!(!register.end_read(Value(2), 108, 112, KEEP), "the read in a quiet moment decides");
}
