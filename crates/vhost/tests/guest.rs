//! Guests with requests in good order, over real sockets and both backends.
#![allow(clippy::disallowed_methods, reason = "guests run beside the server, in real time")]

mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use support::guest::{
    DATA, DISCARD, FLUSH, GET_ID, Guest, IN, INDIRECT, IOERR, NEXT, OK, OUT, UNSUPP, WRITE,
    WRITE_ZEROES, pattern,
};
use support::{SECTORS, serve, serve_volume};
use ubcache_env::testing::{Asked, MemoryVolume};
use ubcache_env::{Nanos, Sector, SectorRange, StreamEnd, VolumeError};
use ubcache_vhost::Pace;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

fn ranges(list: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

#[test]
fn a_guest_reads_what_it_wrote() {
    serve(|server| {
        for event_idx in [false, true] {
            let mut guest = Guest::new(1, 128, event_idx);
            let monitor = guest.connect(server.path(), None);
            for (round, len) in [512, 4096, 9 * 512, 65536, 5 << 20].into_iter().enumerate() {
                let data = pattern(len, round as u8);
                assert_eq!(guest.write(3 + round as u64, &data), OK);
                assert_eq!(guest.read(3 + round as u64, len), (OK, data));
            }
            assert_eq!(guest.carry_out(0, (FLUSH, 0), &[]), (OK, 1));
            assert_eq!(
                server.ask(|it| it.volume.asked.borrow().last().cloned()),
                Some(Asked::Flush)
            );
            drop(monitor);
        }
    });
}

#[test]
fn data_may_be_in_many_pieces_and_in_an_indirect_table() {
    serve(|server| {
        let mut guest = Guest::new(1, 128, true);
        let _monitor = guest.connect(server.path(), None);
        let data = pattern(4096, 1);
        guest.put(DATA, &data[..100]);
        guest.put(DATA + 5000, &data[100..1100]);
        guest.put(DATA + 9001, &data[1100..]);
        let pieces = [(DATA, 100), (DATA + 5000, 1000), (DATA + 7000, 0), (DATA + 9001, 2996)];
        assert_eq!(guest.carry_out(0, (OUT, 8), &pieces), (OK, 1));
        assert_eq!(server.content(8 * 512, 4096), data);
        // Header, status and data in pieces, in a table at an odd place.
        let (place, table) = (DATA + 0x20_000, DATA + 0x30_003);
        guest.header(place, IN, 8);
        for (index, descriptor) in [
            (place, 7, NEXT, 1),
            (place + 7, 9, NEXT, 2),
            (DATA + 0x40_000, 1000, NEXT | WRITE, 3),
            (DATA + 0x50_001, 3097, WRITE, 0),
        ]
        .into_iter()
        .enumerate()
        {
            guest.put_descriptor(table + index as u64 * 16, descriptor);
        }
        guest.describe(0, 9, (table, 4 * 16, INDIRECT, 0));
        guest.offer(0, 9);
        guest.kick(0);
        assert_eq!(guest.used(0), (9, 4097));
        let mut found = guest.get(DATA + 0x40_000, 1000);
        found.extend(guest.get(DATA + 0x50_001, 3096));
        assert_eq!(found, data);
        assert_eq!(guest.get(DATA + 0x50_001 + 3096, 1), [OK]);
    });
}

/// Limits delay requests in the order in which they come; the end of a queue waits for none.
#[test]
fn limits_delay_requests_but_not_the_end_of_a_queue() {
    serve(|server| {
        server.ask(|served| {
            // A millisecond for each KiB, and an hour for what is longer than a MiB.
            let next = Cell::new(Nanos(0));
            let pace: Pace = Rc::new(move |now, bytes| {
                let start = next.get().max(now);
                let took =
                    if bytes > 1 << 20 { Nanos::from_secs(3600) } else { Nanos(bytes * 1000) };
                next.set(start.after(took));
                if bytes > 1 << 20 { next.get() } else { start }
            });
            *served.pace.borrow_mut() = Some(pace);
        });
        let mut guest = Guest::new(1, 128, true);
        let monitor = guest.connect(server.path(), None);
        let began = Instant::now();
        for _ in 0..4 {
            assert_eq!(guest.write(0, &pattern(16 << 10, 1)), OK);
        }
        // The first one starts at once.
        assert!(began.elapsed() >= Duration::from_millis(3 * 16), "{:?}", began.elapsed());
        guest.request(0, 40, DATA - 0x1000, (OUT, 0), &[(DATA, 2 << 20)]);
        guest.offer(0, 40);
        guest.kick(0);
        server.until(|served| {
            let disk = served.control.disk().expect("a disk");
            (disk.rings[0].in_flight == 1).then_some(())
        });
        monitor.frontend.get_vring_base(0).expect("the queue stops");
        assert_eq!(guest.used(0).1, 1, "it was carried out");
    });
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    serve(|server| {
        let mut guest = Guest::new(1, 128, true);
        let _monitor = guest.connect(server.path(), None);
        assert_eq!(guest.write(0, &pattern(64 << 10, 9)), OK);
        let list = ranges(&[(8, 8, 0), (32, 1, 1)]);
        guest.put(DATA, &list);
        assert_eq!(guest.carry_out(0, (WRITE_ZEROES, 0), &[(DATA, 32)]), (OK, 1));
        let list = ranges(&[(64, 64, 0)]);
        guest.put(DATA, &list);
        assert_eq!(guest.carry_out(0, (DISCARD, 0), &[(DATA, 16)]), (OK, 1));
        let asked = server.ask(|it| it.volume.asked.borrow()[1..].to_vec());
        let range = |start, count| SectorRange::new(Sector(start), count);
        assert_eq!(
            asked,
            [
                Asked::Zero { range: range(8, 8), fua: false, may_unmap: false },
                Asked::Zero { range: range(32, 1), fua: false, may_unmap: true },
                Asked::Discard { range: range(64, 64), fua: false },
            ]
        );
    });
}

#[test]
fn the_disk_tells_its_name_and_its_shape() {
    serve(|server| {
        let mut guest = Guest::new(1, 128, true);
        let mut monitor = guest.connect(server.path(), None);
        assert_eq!(guest.carry_out(0, (GET_ID, 0), &[(DATA, 20)]), (OK, 21));
        assert_eq!(guest.get(DATA, 20), b"a volume with a long");
        let config = monitor.config(0, 60);
        assert_eq!(config[..8], SECTORS.to_le_bytes());
        assert_eq!(config[20..24], 512_u32.to_le_bytes());
        assert_eq!((config[24], config[32], config[34], config[56]), (3, 1, 4, 1));
        assert_eq!(monitor.frontend.get_queue_num().expect("a number"), 4);
        assert_eq!(monitor.config(250, 10), [0; 10], "zeroes behind its end");
    });
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    serve(|server| {
        let mut guest = Guest::new(1, 128, true);
        let _monitor = guest.connect(server.path(), None);
        for (kind, sector, len) in [
            (IN, SECTORS, 512),
            (OUT, SECTORS - 1, 1024),
            (OUT, u64::MAX, 512),
            (IN, u64::MAX - 1, 4096),
            (OUT, 0, 511),
            (IN, 0, 513),
            (OUT, 0, 1),
        ] {
            assert_eq!(
                guest.carry_out(0, (kind, sector), &[(DATA, len)]),
                (IOERR, 1),
                "{kind} {sector}"
            );
        }
        for (kind, list, status) in [
            (DISCARD, ranges(&[(SECTORS, 1, 0)]), IOERR),
            (DISCARD, ranges(&[(0, 1, 1)]), UNSUPP),
            (WRITE_ZEROES, ranges(&[(0, 1, 2)]), UNSUPP),
            (WRITE_ZEROES, ranges(&[(0, u32::MAX, 0)]), IOERR),
            (WRITE_ZEROES, ranges(&[(0, 1, 0); 65]), IOERR),
            (DISCARD, vec![0; 15], IOERR),
            (DISCARD, vec![], IOERR),
            (2, vec![0; 16], UNSUPP),
            (u32::MAX, vec![], UNSUPP),
        ] {
            guest.put(DATA, &list);
            let data = [(DATA, list.len() as u32)];
            assert_eq!(guest.carry_out(0, (kind, 0), &data), (status, 1), "{kind} {list:?}");
        }
        // Data outside the memory, or without a header.
        for at in [support::guest::MEMORY_BYTES - 100, u64::MAX - 100, 1 << 50] {
            assert_eq!(guest.carry_out(0, (OUT, 0), &[(at, 512)]), (IOERR, 1));
        }
        assert_eq!(guest.carry_out(0, (OUT, 0), &[(DATA, u32::MAX - 16)]).0, IOERR);
        assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, u32::MAX - 1)]).0, IOERR);
        assert_eq!(
            server.ask(|it| it.volume.asked.borrow().len()),
            0,
            "nothing reached the volume"
        );
        // Nothing to do is no error.
        assert_eq!(guest.carry_out(0, (OUT, 0), &[]), (OK, 1));
        assert_eq!(guest.carry_out(0, (IN, SECTORS), &[]), (OK, 1));
        // A volume that fails.
        server.ask(|it| it.volume.failures.borrow_mut().push_back(Some(VolumeError::ReadOnly)));
        assert_eq!(guest.read(0, 512).0, IOERR);
        assert_eq!(guest.read(0, 512).0, OK);
    });
}

#[test]
fn a_read_only_volume_is_a_read_only_disk() {
    let volume = || {
        let volume = MemoryVolume::new("fixed", SECTORS);
        volume.info.borrow_mut().read_only = true;
        volume
    };
    serve_volume(volume, |server| {
        let mut guest = Guest::new(1, 128, true);
        let monitor = guest.connect(server.path(), None);
        assert_ne!(monitor.features & 1 << 5, 0, "VIRTIO_BLK_F_RO");
        assert_eq!(guest.write(0, &[1; 512]), IOERR);
        guest.put(DATA, &ranges(&[(0, 8, 0)]));
        assert_eq!(guest.carry_out(0, (DISCARD, 0), &[(DATA, 16)]).0, IOERR);
        assert_eq!(guest.read(0, 512), (OK, vec![0; 512]));
    });
}

#[test]
fn parts_of_blocks_are_read_and_written() {
    let volume = || {
        let volume = MemoryVolume::new("large blocks", SECTORS);
        volume.info.borrow_mut().block_bytes = 4096;
        volume
    };
    serve_volume(volume, |server| {
        let mut guest = Guest::new(1, 128, true);
        let mut monitor = guest.connect(server.path(), None);
        assert_eq!(monitor.config(20, 4), 4096_u32.to_le_bytes());
        let data = pattern(1024, 5);
        assert_eq!(guest.write(3, &data), OK);
        assert_eq!(guest.read(3, 1024), (OK, data));
    });
}

#[test]
fn writes_are_durable_when_the_guest_switches_writeback_off() {
    serve(|server| {
        let mut guest = Guest::new(1, 128, true);
        let mut monitor = guest.connect(server.path(), None);
        let write = |fua| Some(Asked::Write { range: SectorRange::new(Sector(0), 1), fua });
        let last =
            |server: &support::Server| server.ask(|it| it.volume.asked.borrow().last().cloned());
        assert_eq!(guest.write(0, &[1; 512]), OK);
        assert_eq!(last(server), write(false));
        let flags = VhostUserConfigFlags::WRITABLE;
        monitor.frontend.set_config(32, flags, &[0]).expect("it can be changed");
        assert_eq!(monitor.config(32, 1), [0]);
        assert_eq!(guest.write(0, &[2; 512]), OK);
        assert_eq!(last(server), write(true));
        assert!(monitor.frontend.set_config(0, flags, &[0]).is_err(), "the size can't");
        assert!(monitor.frontend.set_config(32, flags, &[2]).is_err());
        // The next process hears of it from the memory of the requests in flight.
        let inflight = monitor.inflight.take();
        drop(monitor);
        let mut monitor = guest.connect(server.path(), inflight);
        assert_eq!(monitor.config(32, 1), [0]);
        assert_eq!(guest.write(0, &[3; 512]), OK);
        assert_eq!(last(server), write(true));
    });
}

#[test]
fn a_full_ring_is_carried_out_at_the_same_time() {
    serve(|server| {
        for event_idx in [false, true] {
            let mut guest = Guest::new(2, 128, event_idx);
            let _monitor = guest.connect(server.path(), None);
            for round in 0..40_u64 {
                let queue = (round % 2) as usize;
                for index in 0..42 {
                    let at = DATA + u64::from(index) * 0x1_000;
                    guest.put(at + 512, &[round as u8; 512]);
                    let what = (OUT, u64::from(index));
                    guest.request(queue, index * 3, at, what, &[(at + 512, 512)]);
                    guest.offer(queue, index * 3);
                }
                guest.kick(queue);
                let mut heads: Vec<u32> = (0..42).map(|_| guest.used(queue).0).collect();
                heads.sort_unstable();
                assert_eq!(heads, (0..42).map(|index| index * 3).collect::<Vec<u32>>());
                assert_eq!(server.content(0, 42 * 512), vec![round as u8; 42 * 512]);
            }
        }
        assert!(server.ask(|it| it.volume.most_running.get()) > 0);
    });
}

#[test]
fn a_stopped_queue_has_no_request_in_flight_and_goes_on_later() {
    serve(|server| {
        let mut guest = Guest::new(2, 16, true);
        let mut monitor = guest.connect(server.path(), None);
        server.hold(1);
        guest.request(0, 0, DATA, (IN, 0), &[(DATA + 0x1000, 512)]);
        guest.offer(0, 0);
        guest.kick(0);
        server.until(|it| (it.volume.running.get() == 1).then_some(()));
        // The answer comes when the request is done, and not before.
        let stopping = std::thread::scope(|scope| {
            let stop = scope.spawn(|| monitor.frontend.get_vring_base(0).expect("its place"));
            server.ask(|_| ());
            assert!(!stop.is_finished());
            server.release();
            stop.join().expect("stopped")
        });
        assert_eq!(stopping, 1);
        assert_eq!(guest.used_now(0).map(|(id, _)| id), Some(0));
        // It is not served now, the other one is.
        guest.request(0, 3, DATA, (IN, 0), &[(DATA + 0x1000, 512)]);
        guest.offer(0, 3);
        guest.kick(0);
        assert_eq!(guest.carry_out(1, (IN, 0), &[(DATA + 0x1000, 512)]).0, OK);
        assert_eq!(guest.used_now(0), None);
        guest.start_queue(&mut monitor, 0);
        assert_eq!(guest.used(0).0, 3);
        for queue in 0..2 {
            monitor.frontend.get_vring_base(queue).expect("stopped");
        }
        drop(monitor);
        let ends = server.until(|it| {
            let ends = it.volume.ends.borrow();
            (ends.len() == usize::from(support::QUEUES)).then(|| ends.clone())
        });
        assert!(ends.iter().all(|end| *end == StreamEnd::Orderly), "{ends:?}");
    });
}

#[test]
fn a_disabled_queue_waits() {
    serve(|server| {
        let mut guest = Guest::new(2, 16, true);
        let mut monitor = guest.connect(server.path(), None);
        monitor.frontend.set_vring_enable(0, false).expect("set");
        guest.request(0, 0, DATA, (IN, 0), &[(DATA + 0x1000, 512)]);
        guest.offer(0, 0);
        guest.kick(0);
        assert_eq!(guest.carry_out(1, (IN, 0), &[(DATA + 0x1000, 512)]).0, OK);
        assert_eq!(guest.used_now(0), None);
        monitor.frontend.set_vring_enable(0, true).expect("set");
        assert_eq!(guest.used(0).0, 0);
    });
}

#[test]
fn the_monitor_hears_of_a_new_size() {
    serve(|server| {
        let guest = Guest::new(1, 16, true);
        let mut monitor = guest.connect(server.path(), None);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
        monitor.frontend.set_backend_request_fd(&theirs).expect("taken");
        server.ask(|it| {
            it.volume.info.borrow_mut().sectors = 2 * SECTORS;
            it.volume.content.borrow_mut().resize(2 * SECTORS as usize * 512, 0);
            it.control.resized();
        });
        let mut message = [0; 12];
        std::io::Read::read_exact(&mut &ours, &mut message).expect("a message");
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(monitor.config(0, 8), (2 * SECTORS).to_le_bytes());
        let mut guest = guest;
        assert_eq!(guest.read(2 * SECTORS - 1, 512).0, OK);
    });
}
