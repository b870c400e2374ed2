//! Every format, and what is none.

use super::*;

fn parse(bytes: impl BufRead) -> Result<Vec<TraceRecord>, TraceError> {
    super::parse(bytes, Options::default())
}

fn requests(text: &str) -> Vec<(bool, u64, u64)> {
    let all = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    all.into_iter().map(|request| (request.write, request.offset, request.bytes)).collect()
}

#[test]
fn trace_format_is_recognised_by_content() {
    let expected = vec![(false, 4096, 8192), (true, 512, 512)];
    assert_eq!(requests("0.5,R,4096,8192\n0.7,write,512,512\n"), expected);
    assert_eq!(
        requests("version,time,op,size,lbn\n1,5,28,8192,8\n1,6,2a,512,1\n1,6,0,512,1\n"),
        expected
    );
    assert_eq!(
        requests("Offset,Size,Type,Timestamp\n4096,8192,Read,1\n512,512,Write,2\n"),
        expected
    );
    assert_eq!(
        requests(
            "  8,0    3        1     0.000000000   697  Q   R 8 + 16 [fio]\n\
             8,0    3        2     0.000000100   697  G   R 8 + 16 [fio]\n\
             8,0    3        3     0.000000200   697  Q  WS 1 + 1 [fio]\n\
             8,0    3        4     0.000000300   697  Q FWS [fio]\n\
             CPU0 (8,0):\n Reads Queued:           1,        8KiB\n"
        ),
        expected
    );
    assert_eq!(
        requests("9000 0 8 16 1\n9001 0 1 1 0\n"),
        expected,
        "MQSim: 0 is a write, sectors of the only device"
    );
    assert_eq!(requests("8 16 0 0\n1 1 0 1\n"), [(false, 4096, 8192), (false, 512, 512)]);
    for version in [1u16, 2] {
        let mut bytes = Vec::new();
        for (cmd, len, lbn) in [(0x28u16, 8192u32, 8u64), (0x2a, 512, 1)] {
            let numbers = [7u32.to_le_bytes(), len.to_le_bytes(), 1u32.to_le_bytes()].concat();
            let kind = [cmd.to_le_bytes(), (version << 8).to_le_bytes()].concat();
            bytes.extend(if version == 1 {
                [numbers, kind].concat()
            } else {
                [kind, numbers].concat()
            });
            bytes.extend(lbn.to_le_bytes());
            bytes.extend(99u64.to_le_bytes());
            bytes.extend(if version == 1 { vec![] } else { vec![0; 8] });
        }
        let all = parse(bytes.as_slice()).expect("a trace");
        assert_eq!(
            all.iter().map(|it| (it.write, it.offset, it.bytes)).collect::<Vec<_>>(),
            expected
        );
    }
}

#[test]
fn blocks_of_a_lis_trace_may_be_pages() {
    let options = Options { lis_block_bytes: 4096 };
    let found = super::parse(b"3 2 0 0\n".as_slice(), options).expect("a trace");
    assert_eq!(found, [TraceRecord { write: false, offset: 12288, bytes: 8192 }]);
}

#[test]
fn devices_of_a_trace_do_not_overlap() {
    let found = requests("1 7 0 8 1\n2 3 4096 8 1\n3 7 8 8 0\n");
    let (third, seventh) = (4096 * 512, 3 << 20);
    let expected = vec![(false, seventh, 4096), (false, third, 4096), (true, seventh + 4096, 4096)];
    assert_eq!(found, expected);
}

/// A record of oracleGeneral.
fn oracle(time: u32, object: u64, bytes: u32, next: i64) -> Vec<u8> {
    let mut record = time.to_le_bytes().to_vec();
    record.extend(object.to_le_bytes());
    record.extend(bytes.to_le_bytes());
    record.extend(next.to_le_bytes());
    record
}

#[test]
fn objects_of_a_trace_lie_one_behind_the_other() {
    let bytes = [
        oracle(5, u64::MAX, 4097, 3),
        oracle(5, 77, 4096, -1),
        // Another size of an object that was there is not believed.
        oracle(6, u64::MAX, 65536, -1),
    ]
    .concat();
    let expected = vec![(0, 4097), (8192, 4096), (0, 4097)];
    let places =
        |all: Vec<TraceRecord>| all.iter().map(|it| (it.offset, it.bytes)).collect::<Vec<_>>();
    assert_eq!(places(parse(bytes.as_slice()).expect("a trace")), expected);
    let cut = parse(&bytes[..bytes.len() - 1]).expect("a trace");
    assert_eq!(places(cut), expected[..2], "the last record is not whole");
    let early = [oracle(5, 1, 4096, -1), oracle(4, 1, 4096, -1)].concat();
    assert!(parse(early.as_slice()).is_err(), "time does not run backwards");
}

#[test]
fn packed_trace_is_unpacked() {
    let text = b"8 16 0 0\n1 1 0 1\n".as_slice();
    let plain = parse(text).expect("a trace");
    let zstd = zstd::encode_all(text, 1).expect("it is packed");
    let xz = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x1c, 0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0x01, 0x00, 0x10, 0x38, 0x20, 0x31,
        0x36, 0x20, 0x30, 0x20, 0x30, 0x0a, 0x31, 0x20, 0x31, 0x20, 0x30, 0x20, 0x31, 0x0a, 0x00,
        0x00, 0x00, 0x00, 0xfc, 0x20, 0xbf, 0x9d, 0x00, 0x01, 0x25, 0x11, 0x3e, 0x45, 0xc5, 0xa2,
        0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];
    for packed in [text, &zstd, &xz] {
        let unpacked = super::unpack::unpack(packed).expect("a known packer");
        assert_eq!(parse(unpacked).expect("a trace"), plain);
    }
}

#[test]
fn malformed_trace_is_refused_with_its_line() {
    let refused = |bytes: &[u8]| parse(bytes).expect_err("it is no trace").to_string();
    assert!(refused(b"").contains("not a trace"));
    assert!(refused(b"hello\n").contains("found \"hello\""));
    assert!(refused(&[0; 400]).contains("no known format"));
    assert!(refused(b"1,R,4096,8192\n2,R,x,8192\n").starts_with("line 2: found \"x\""));
    assert!(refused(b"time,op,size\n1,R,8192\n").contains("an offset or a sector"));
    assert!(refused(b"1 2 3 4\n1 2 3\n").starts_with("line 2: found \"1 2 3\", expected 4"));
    assert!(refused(b"1 0 8 8 1\n1 0 8 8 2\n").starts_with("line 2"));
    assert!(refused(b"1,flush,0,0\n").contains("no reads or writes"));
}
