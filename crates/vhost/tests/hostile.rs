//! Guests and monitors that do what they must not: an error for the request, the queue or the
//! connection, and nothing else is harmed.

mod support;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use support::guest::{
    DATA, Guest, IN, INDIRECT, MEMORY_BYTES, NEXT, OK, OUT, WRITE, pattern, wait,
};
use support::{Server, serve};
use ubcache_vhost::{ChainError, QueueError, ServeError};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

fn reported(server: &Server) -> Vec<(u16, QueueError)> {
    server.ask(|served| served.queue_errors.take())
}

/// Something that a guest writes into its first ring.
type Nonsense = fn(&mut Guest);

const NONSENSE: &[(&str, Nonsense)] = &[
    ("a loop", |guest| {
        guest.describe(0, 0, (DATA, 16, NEXT, 1));
        guest.describe(0, 1, (DATA, 16, NEXT, 0));
    }),
    ("a descriptor that follows itself", |guest| guest.describe(0, 0, (DATA, 16, NEXT, 0))),
    ("a successor outside the table", |guest| guest.describe(0, 0, (DATA, 16, NEXT, 16))),
    ("no room for the status", |guest| guest.describe(0, 0, (DATA, 16, 0, 0))),
    ("only empty pieces", |guest| guest.describe(0, 0, (DATA, 0, WRITE, 0))),
    ("reading after writing", |guest| {
        guest.describe(0, 0, (DATA, 16, NEXT | WRITE, 1));
        guest.describe(0, 1, (DATA, 16, 0, 0));
    }),
    ("more than 4 GiB", |guest| {
        guest.describe(0, 0, (DATA, u32::MAX, NEXT, 1));
        guest.describe(0, 1, (DATA, u32::MAX, NEXT, 2));
        guest.describe(0, 2, (DATA, 1, WRITE, 0));
    }),
    ("a table outside the memory", |guest| {
        guest.describe(0, 0, (MEMORY_BYTES - 8, 32, INDIRECT, 0));
    }),
    ("a table beyond all addresses", |guest| {
        guest.put_descriptor(DATA, (DATA, 16, NEXT, 1));
        guest.describe(0, 0, (u64::MAX - 15, 0xffff_fff0, INDIRECT, 0));
    }),
    ("a table of parts of descriptors", |guest| guest.describe(0, 0, (DATA, 17, INDIRECT, 0))),
    ("an empty table", |guest| guest.describe(0, 0, (DATA, 0, INDIRECT, 0))),
    ("a table with a successor", |guest| guest.describe(0, 0, (DATA, 16, INDIRECT | NEXT, 1))),
    ("a table in a table", |guest| {
        guest.put_descriptor(DATA, (DATA, 16, INDIRECT, 0));
        guest.describe(0, 0, (DATA, 16, INDIRECT, 0));
    }),
    ("a long loop in a table", |guest| {
        for index in 0..2000 {
            let next = (index + 1) % 2000;
            guest.put_descriptor(DATA + u64::from(index) * 16, (DATA, 1, NEXT, next));
        }
        guest.describe(0, 0, (DATA, 2000 * 16, INDIRECT, 0));
    }),
];

#[test]
fn nonsense_in_a_ring_stops_that_queue_until_it_is_set_up_again() {
    serve(|server| {
        for (name, nonsense) in NONSENSE {
            let mut guest = Guest::new(2, 16, true);
            let mut monitor = guest.connect(server.path(), None);
            nonsense(&mut guest);
            guest.offer(0, 0);
            guest.kick(0);
            wait(&guest.queues[0].error);
            let errors = reported(server);
            assert!(
                matches!(errors.as_slice(), [(0, QueueError::Chain { head: 0, .. })]),
                "{name}: {errors:?}"
            );
            // The other queue does not notice.
            assert_eq!(guest.carry_out(1, (IN, 0), &[(DATA, 512)]).0, OK, "{name}");
            // The driver resets the device.
            monitor.frontend.get_vring_base(0).expect("stopped");
            let used = guest.queues[0].seen;
            guest.jump(0, used);
            guest.queues[0].next = used;
            guest.start_queue(&mut monitor, 0);
            assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK, "{name}");
        }
    });
}

#[test]
fn the_reason_names_what_was_found() {
    serve(|server| {
        let mut guest = Guest::new(1, 16, true);
        let _monitor = guest.connect(server.path(), None);
        guest.describe(0, 3, (DATA, 16, NEXT, 77));
        guest.offer(0, 3);
        guest.kick(0);
        wait(&guest.queues[0].error);
        let reason = ChainError::Index { index: 77, count: 16 };
        assert_eq!(reported(server), [(0, QueueError::Chain { head: 3, reason })]);
    });
}

#[test]
fn a_ring_index_that_jumps_stops_the_queue() {
    serve(|server| {
        for jump in [17, 5000, u16::MAX] {
            let mut guest = Guest::new(2, 16, true);
            let _monitor = guest.connect(server.path(), None);
            guest.jump(0, jump);
            guest.kick(0);
            wait(&guest.queues[0].error);
            assert!(matches!(reported(server).as_slice(), [(0, QueueError::Ring(_))]));
            assert_eq!(guest.carry_out(1, (IN, 0), &[(DATA, 512)]).0, OK);
        }
    });
}

#[test]
fn a_head_outside_the_table_and_a_head_in_use_stop_the_queue() {
    serve(|server| {
        let mut guest = Guest::new(1, 16, true);
        let monitor = guest.connect(server.path(), None);
        guest.offer(0, 16);
        guest.kick(0);
        wait(&guest.queues[0].error);
        let reason = ChainError::Index { index: 16, count: 16 };
        assert_eq!(reported(server), [(0, QueueError::Chain { head: 16, reason })]);
        drop(monitor);

        let mut guest = Guest::new(1, 16, true);
        let _monitor = guest.connect(server.path(), None);
        server.hold(1);
        guest.request(0, 2, DATA, (IN, 0), &[(DATA + 0x1000, 512)]);
        guest.offer(0, 2);
        guest.offer(0, 2);
        guest.kick(0);
        wait(&guest.queues[0].error);
        assert_eq!(reported(server), [(0, QueueError::InUse(2))]);
        server.release();
        assert_eq!(guest.used(0).0, 2, "the first one is answered");
    });
}

#[test]
fn data_that_changes_during_a_write_is_written_as_it_was() {
    serve(|server| {
        let mut guest = Guest::new(1, 16, true);
        let _monitor = guest.connect(server.path(), None);
        let data = pattern(4096, 7);
        guest.put(DATA + 0x1000, &data);
        server.hold(1);
        guest.request(0, 0, DATA, (OUT, 0), &[(DATA + 0x1000, 4096)]);
        guest.offer(0, 0);
        guest.kick(0);
        server.until(|it| (it.volume.running.get() == 1).then_some(()));
        guest.put(DATA + 0x1000, &[0; 4096]);
        server.release();
        assert_eq!(guest.used(0).0, 0);
        assert_eq!(server.content(0, 4096), data);
    });
}

#[test]
fn long_requests_share_the_memory_that_there_is() {
    serve(|server| {
        // Every request names the same 24 MiB several times: 16 of them would take 1.2 GiB.
        let mut guest = Guest::new(1, 256, true);
        let _monitor = guest.connect(server.path(), None);
        let piece = (DATA, 5 << 20);
        for index in 0..16_u16 {
            let head = index * 5;
            let place = 0x8_0000 + u64::from(index) * 0x100;
            guest.request(0, head, place, (OUT, 0), &[piece, piece, piece]);
            guest.offer(0, head);
        }
        guest.kick(0);
        for _ in 0..16 {
            let (head, _) = guest.used(0);
            let place = 0x8_0000 + u64::from(head / 5) * 0x100;
            assert_eq!(guest.get(place + 16, 1), [OK]);
        }
        let most = server.ask(|it| it.volume.most_running.get());
        assert!(most <= 16, "{most} pieces at the same time");
    });
}

#[test]
fn files_that_are_something_else_are_refused() {
    serve(|server| {
        let guest = Guest::new(1, 16, true);
        let mut monitor = guest.connect(server.path(), None);
        let file = tempfile::tempfile().expect("a file");
        let region = |bytes, from| VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: 0,
            mmap_offset: from,
            mmap_handle: file.as_raw_fd(),
        };
        // Shorter than it says: to touch the rest would be fatal.
        file.set_len(8192).expect("it grows");
        for (bytes, from) in [(8193, 0), (8192, 4096), (1 << 40, 0), (4096, 1 << 60)] {
            assert!(monitor.frontend.set_mem_table(&[region(bytes, from)]).is_err());
        }
        let overlapping = [region(8192, 0), region(4096, 4096)];
        assert!(monitor.frontend.set_mem_table(&overlapping).is_err());
        let inflight = VhostUserInflight::new(1 << 20, 0, 1, 16);
        assert!(monitor.frontend.set_inflight_fd(&inflight, file.as_raw_fd()).is_err());
        let short = VhostUserInflight::new(8192, 0, 64, 1024);
        assert!(monitor.frontend.set_inflight_fd(&short, file.as_raw_fd()).is_err());
        // SAFETY: a new descriptor without another owner.
        let no_event = unsafe {
            std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(file))
        };
        let no_event: EventFd = no_event;
        assert!(monitor.frontend.set_vring_kick(0, &no_event).is_err());
        assert!(monitor.frontend.set_vring_call(0, &no_event).is_err());
        assert!(monitor.frontend.set_vring_num(0, 3).is_err());
        assert!(monitor.frontend.set_vring_num(9, 16).is_err());
        let outside = VringConfigData {
            queue_max_size: 16,
            queue_size: 16,
            flags: 0,
            desc_table_addr: 16,
            used_ring_addr: 16,
            avail_ring_addr: 16,
            log_addr: None,
        };
        assert!(monitor.frontend.set_vring_addr(0, &outside).is_err());
        // A queue that is served has its shape.
        assert!(monitor.frontend.set_vring_num(0, 32).is_err());
        assert!(monitor.frontend.set_vring_base(0, 7).is_err());
        // After all of that the disk still works.
        let mut guest = guest;
        assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK);
    });
}

#[test]
fn a_peer_that_speaks_nonsense_loses_its_connection_and_the_next_is_served() {
    serve(|server| {
        let header = |kind: u32, flags: u32, size: u32| {
            [kind, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
        };
        let nonsense: Vec<(Vec<u8>, bool)> = vec![
            (b"GET / HTTP/1.0\r\n\r\n".to_vec(), true),
            (header(1, 1, u32::MAX), true),
            (header(1, 1, 4097), true),
            (header(9999, 1, 0), true),
            (header(1, 7, 0), true),
            ([header(11, 1, 8), vec![0xff; 8]].concat(), true),
            ([header(24, 1, 12), vec![0xff; 12]].concat(), true),
            ([header(2, 1, 8), vec![0xff; 8]].concat(), true),
            // Left in the middle of a message.
            (header(1, 1, 0)[..5].to_vec(), false),
            (header(2, 1, 8), false),
        ];
        for (bytes, waits) in nonsense {
            let mut socket = UnixStream::connect(server.path()).expect("it listens");
            socket.write_all(&bytes).expect("sent");
            if waits {
                let mut rest = Vec::new();
                // The end may come as a reset, with what was sent unread.
                let _ = socket.read_to_end(&mut rest);
            }
            drop(socket);
            let end = server.until(|it| it.ends.borrow_mut().pop());
            assert!(
                matches!(end, Err(ServeError::Protocol(_) | ServeError::Disconnected)),
                "{bytes:?}: {end:?}"
            );
        }
        let mut guest = Guest::new(1, 16, true);
        let _monitor = guest.connect(server.path(), None);
        assert_eq!(guest.carry_out(0, (IN, 0), &[(DATA, 512)]).0, OK);
    });
}

#[test]
fn a_peer_that_reads_no_replies_holds_nobody_up() {
    serve(|server| {
        let mut socket = UnixStream::connect(server.path()).expect("it listens");
        socket.set_nonblocking(true).expect("set");
        let message: Vec<u8> = [1_u32, 1, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        // Until neither its replies nor its requests fit any more.
        while socket.write_all(&message).is_ok() {}
        assert_eq!(server.ask(|it| it.ends.borrow().len()), 0, "the thread goes on");
        drop(socket);
        server.until(|it| it.ends.borrow_mut().pop().map(drop));
    });
}
