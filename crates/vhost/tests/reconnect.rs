//! The connection breaks with requests in flight, and the monitor comes again.

mod support;

use support::guest::{DATA, Guest, IN, OK, OUT, pattern};
use support::serve;
use ubcache_env::testing::Asked;
use ubcache_env::{Sector, SectorRange, StreamEnd};
use ubcache_vhost::{Lineage, ServeError};

#[test]
fn requests_in_flight_are_carried_out_again_and_answered_once() {
    serve(|server| {
        for event_idx in [false, true] {
            server.ask(|it| it.volume.asked.borrow_mut().clear());
            let mut guest = Guest::new(1, 16, event_idx);
            let mut monitor = guest.connect(server.path(), None);
            // Two requests with answers first, so that the ring has moved.
            assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK);
            assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK);
            server.hold(3);
            for (index, head) in [9_u16, 3, 6].into_iter().enumerate() {
                let place = DATA + u64::from(head) * 0x2000;
                guest.put(place + 0x1000, &pattern(512, head as u8));
                guest.request(0, head, place, (OUT, index as u64), &[(place + 0x1000, 512)]);
                guest.offer(0, head);
            }
            guest.kick(0);
            server.until(|it| (it.volume.running.get() == 3).then_some(()));
            let inflight = monitor.inflight.take();
            drop(monitor);
            // One more comes while nobody serves.
            let place = DATA + 0x40_000;
            guest.request(0, 12, place, (IN, 0), &[(place + 0x1000, 512)]);
            guest.offer(0, 12);
            server.release();
            server.until(|it| (it.ends.borrow_mut().pop()).map(drop));
            assert_eq!(guest.used_now(0), None, "the memory of the guest is left alone");
            server.ask(|it| it.volume.asked.borrow_mut().clear());

            let _monitor = guest.connect(server.path(), inflight);
            let mut heads: Vec<u32> = (0..4).map(|_| guest.used(0).0).collect();
            let asked = server.ask(|it| it.volume.asked.borrow().clone());
            let write =
                |sector| Asked::Write { range: SectorRange::new(Sector(sector), 1), fua: false };
            let read = Asked::Read(SectorRange::new(Sector(0), 1));
            assert_eq!(asked, [write(0), write(1), write(2), read], "in their order");
            heads.sort_unstable();
            assert_eq!(heads, [3, 6, 9, 12]);
            for (index, head) in [9_u8, 3, 6].into_iter().enumerate() {
                assert_eq!(server.content(index * 512, 512), pattern(512, head));
            }
            assert_eq!(guest.used_now(0), None, "each has one answer");
            assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK);
        }
    });
}

#[test]
fn a_broken_connection_is_a_cut_of_its_streams() {
    serve(|server| {
        let mut guest = Guest::new(1, 16, true);
        let monitor = guest.connect(server.path(), None);
        assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK);
        drop(monitor);
        let ends = server.until(|it| {
            let ends = it.volume.ends.borrow();
            (ends.len() == usize::from(support::QUEUES)).then(|| ends.clone())
        });
        assert!(ends.iter().all(|end| *end == StreamEnd::Cut), "{ends:?}");
    });
}

#[test]
fn an_orderly_end_answers_what_was_taken_and_leaves_the_rest() {
    serve(|server| {
        let mut guest = Guest::new(1, 16, true);
        let mut monitor = guest.connect(server.path(), None);
        server.hold(1);
        guest.request(0, 0, DATA, (IN, 0), &[(DATA + 0x1000, 512)]);
        guest.offer(0, 0);
        guest.kick(0);
        server.until(|it| (it.volume.running.get() == 1).then_some(()));
        server.ask(|it| it.control.drain());
        server.release();
        server.until(|it| it.ends.borrow_mut().pop()).expect("an orderly end");
        assert_eq!(guest.used_now(0).map(|(head, _)| head), Some(0));
        let inflight = monitor.inflight.take();
        drop(monitor);
        // Nothing is in flight for the next process.
        let file = inflight.expect("it is there").1;
        let mut header = [0; 16 + 16 * 16];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0).expect("notes");
        assert!((0..16).all(|head| header[16 + head * 16] == 0));
        assert_eq!(header[14..16], [1, 0], "one request is answered");
    });
}

/// Connects again after the end of a connection, with a server of that lineage.
fn connects_again(first: Lineage, then: Lineage, in_order: bool) -> bool {
    static ACCEPTED: std::sync::Mutex<Option<(Lineage, Lineage, bool)>> =
        std::sync::Mutex::new(None);
    static ONE: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    *ACCEPTED.lock().expect("not poisoned") = Some((first, then, in_order));
    serve(|server| {
        let (first, then, in_order) = ACCEPTED.lock().expect("not poisoned").expect("set");
        server.ask(move |it| it.lineage.set(first));
        let mut guest = Guest::new(1, 16, true);
        let mut monitor = guest.connect(server.path(), None);
        assert_eq!(guest.write(0, &[1; 512]), OK);
        if in_order {
            server.ask(|it| it.control.drain());
            server.until(|it| it.ends.borrow_mut().pop().map(drop));
            server.ask(|it| assert_eq!(it.volume.asked.borrow().last(), Some(&Asked::Flush)));
            server.ask(|it| it.control.resume());
        }
        let (place, file) = monitor.inflight.take().expect("it is there");
        drop(monitor);
        server.ask(move |it| it.lineage.set(then));
        // The notes alone tell.
        let accepted = guest.is_taken_back(server.path(), (place, file));
        if !accepted {
            let end = server.until(|it| it.ends.borrow_mut().pop_if(|end| end.is_err()));
            let said = matches!(&end, Err(ServeError::Protocol(text)) if text.contains("killed"));
            assert!(said, "{end:?}");
        }
        *ONE.lock().expect("not poisoned") = accepted;
    });
    *ONE.lock().expect("not poisoned")
}

/// A guest that goes on over the death of a daemon has answers for writes that were not flushed. A
/// daemon that may not have them would let later flushes succeed over the loss.
#[test]
fn a_guest_is_taken_back_only_with_the_writes_that_it_has_answers_for() {
    let (a, b) = (Lineage::Of(7), Lineage::Of(8));
    for (first, then, in_order, accepted) in [
        (a, a, false, true),
        (a, b, false, false),
        (a, Lineage::Unknown, false, false),
        (Lineage::Unknown, Lineage::Unknown, false, false),
        (Lineage::Unknown, a, false, false),
        (Lineage::Whole, Lineage::Whole, false, true),
        (a, Lineage::Whole, false, true),
        (a, b, true, true),
        (Lineage::Unknown, Lineage::Unknown, true, true),
    ] {
        let found = connects_again(first, then, in_order);
        assert_eq!(found, accepted, "{first:?}, then {then:?}, in order: {in_order}");
    }
}
