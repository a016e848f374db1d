//! The hash against the published vectors, against `sha2`, and against openssl.
#![expect(clippy::print_stderr, reason = "tests")]

use std::io::Write;
use std::process::{Command, Stdio};

use larder_metal::{BLOCK, Sha256, update_pair};
use proptest::prelude::{any, prop_assert_eq, proptest};
use sha2::Digest as _;

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of(bytes: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hex(hasher.finish())
}

fn reference(bytes: &[u8]) -> String {
    hex(sha2::Sha256::digest(bytes).into())
}

/// Bytes without pattern, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

/// FIPS 180-4's examples, and the long ones of NIST's test suite.
#[test]
fn the_published_vectors() {
    let vectors: [(&[u8], &str); 4] = [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
        (
            b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
        ),
    ];
    for (message, digest) in vectors {
        assert_eq!(of(message), digest);
    }
    let (mut million, mut other) = (Sha256::new(), Sha256::new());
    for _ in 0..1000 {
        update_pair(&mut million, &[b'a'; 1000], &mut other, &[b'b'; 700]);
    }
    assert_eq!(hex(million.finish()), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    assert_eq!(hex(other.finish()), reference(&[b'b'; 700_000]));
}

#[test]
fn every_pair_of_lengths_around_the_borders_of_blocks() {
    let lengths: Vec<usize> =
        (0..4).flat_map(|n| (n * BLOCK).saturating_sub(2)..=n * BLOCK + 2).chain(50..60).collect();
    for &a in &lengths {
        for &b in &lengths {
            let (one, two) = (noise(a, 1), noise(b, 2));
            let (mut first, mut second) = (Sha256::new(), Sha256::new());
            update_pair(&mut first, &one, &mut second, &two);
            assert_eq!((hex(first.finish()), hex(second.finish())), (reference(&one), reference(&two)), "{a} and {b}");
        }
    }
}

proptest! {
    #[test]
    fn two_streams_in_any_pieces_are_two_streams(
        pieces in proptest::collection::vec((0_usize..300, 0_usize..300), 0..20), seed in any::<u64>(),
    ) {
        let one = noise(pieces.iter().map(|piece| piece.0).sum(), seed);
        let two = noise(pieces.iter().map(|piece| piece.1).sum(), !seed);
        let (mut first, mut second) = (Sha256::new(), Sha256::new());
        let (mut a, mut b) = (0, 0);
        for (more, others) in pieces {
            update_pair(&mut first, &one[a..a + more], &mut second, &two[b..b + others]);
            a += more;
            b += others;
        }
        prop_assert_eq!(first.len(), a as u64);
        prop_assert_eq!(hex(first.finish()), reference(&one));
        prop_assert_eq!(hex(second.finish()), reference(&two));
    }

    #[test]
    fn a_state_that_was_kept_continues(blocks in 0_usize..20, rest in 0_usize..200, seed in any::<u64>()) {
        let bytes = noise(blocks * BLOCK + rest, seed);
        let (before, after) = bytes.split_at(blocks * BLOCK);
        let mut hasher = Sha256::new();
        hasher.update(before);
        let (state, len) = hasher.midstate().unwrap();
        let mut resumed = Sha256::resume(state, len).unwrap();
        resumed.update(after);
        prop_assert_eq!(resumed.midstate().is_some(), rest % BLOCK == 0);
        prop_assert_eq!(hex(resumed.finish()), reference(&bytes));
    }
}

#[test]
fn no_state_is_taken_from_the_middle_of_a_block() {
    assert!(Sha256::resume([0; 8], 65).is_none());
    let mut hasher = Sha256::new();
    hasher.update(b"x");
    assert!(hasher.midstate().is_none() && !hasher.is_empty());
}

#[test]
fn openssl_says_the_same() {
    let Ok(mut child) =
        Command::new("openssl").args(["dgst", "-sha256", "-r"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    else {
        return eprintln!("SKIPPED: openssl is not installed");
    };
    let bytes = noise(3_000_001, 7);
    let (mut first, mut second) = (Sha256::new(), Sha256::new());
    update_pair(&mut first, &bytes, &mut second, &noise(2_999_999, 8));
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said.split_whitespace().next().unwrap(), hex(first.finish()));
}

/// What is promised on processors with SHA instructions; printed, because a busy machine says little.
#[test]
#[ignore = "a measurement: run it alone, optimised"]
fn two_streams_take_little_longer_than_one() {
    let (one, two) = (noise(64 << 20, 1), noise(64 << 20, 2));
    let seconds = |work: &dyn Fn()| {
        let times = (0..5).map(|_| {
            let begin = std::time::Instant::now();
            work();
            begin.elapsed().as_secs_f64()
        });
        times.fold(f64::INFINITY, f64::min)
    };
    let single = seconds(&|| {
        let mut hasher = Sha256::new();
        hasher.update(&one);
        std::hint::black_box(hasher.finish());
    });
    let pair = seconds(&|| {
        let (mut first, mut second) = (Sha256::new(), Sha256::new());
        update_pair(&mut first, &one, &mut second, &two);
        std::hint::black_box((first.finish(), second.finish()));
    });
    let gigabytes = (64 << 20) as f64 / 1e9;
    eprintln!(
        "one: {:.2} GB/s, two: {:.2} GB/s, {:.2} x",
        gigabytes / single,
        2.0 * gigabytes / pair,
        2.0 * single / pair
    );
}
