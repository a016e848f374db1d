//! The hash against the published vectors, against `sha2`, and against openssl.
#![expect(clippy::print_stderr, reason = "tests")]

use std::io::Write;
use std::process::{Command, Stdio};

use larder_metal::{BLOCK, Sha256, streams_at_once, update_together};
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};
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
        update_together(&mut [(&mut million, &[b'a'; 1000]), (&mut other, &[b'b'; 700])]);
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
            update_together(&mut [(&mut first, &one), (&mut second, &two)]);
            assert_eq!((hex(first.finish()), hex(second.finish())), (reference(&one), reference(&two)), "{a} and {b}");
        }
    }
}

proptest! {
    #[test]
    fn streams_in_any_pieces_are_what_each_is_alone(
        pieces in vec(vec(prop_oneof![0_usize..300, 0_usize..5000], 0..40), 0..12), seed in any::<u64>(),
    ) {
        let most = pieces.iter().map(Vec::len).max().unwrap_or(0);
        let contents: Vec<Vec<u8>> = (0..most)
            .map(|n| noise(pieces.iter().filter_map(|lens| lens.get(n)).sum(), seed.wrapping_add(n as u64)))
            .collect();
        let mut hashers = vec![(Sha256::new(), 0); most];
        for lens in &pieces {
            let given = hashers.iter_mut().zip(&contents).zip(lens);
            let mut streams: Vec<(&mut Sha256, &[u8])> = given
                .map(|(((hasher, at), content), len)| {
                    *at += len;
                    (hasher, &content[*at - len..*at])
                })
                .collect();
            update_together(&mut streams);
            prop_assert!(streams.iter().all(|(_, left)| left.is_empty()));
        }
        for ((hasher, at), content) in hashers.into_iter().zip(&contents) {
            prop_assert_eq!(hasher.len(), at as u64);
            prop_assert_eq!(hex(hasher.finish()), reference(content));
        }
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
        assert!(!in_ci(), "in CI every test runs: openssl is missing");
        return eprintln!("SKIPPED openssl_says_the_same: openssl is not installed");
    };
    let bytes = noise(3_000_001, 7);
    let (mut first, mut second) = (Sha256::new(), Sha256::new());
    update_together(&mut [(&mut first, &bytes), (&mut second, &noise(2_999_999, 8))]);
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said.split_whitespace().next().unwrap(), hex(first.finish()));
}

/// From one stream to more than the processor takes at once, with every length around the borders of blocks among them.
#[test]
fn every_number_of_streams_with_unequal_lengths() {
    for count in 0..=2 * streams_at_once().max(16) + 1 {
        let contents: Vec<Vec<u8>> =
            (0..count).map(|n| noise((n * 61) % (3 * BLOCK) + n % 5 * BLOCK, n as u64)).collect();
        let mut hashers = vec![Sha256::new(); count];
        let mut streams: Vec<(&mut Sha256, &[u8])> =
            hashers.iter_mut().zip(&contents).map(|(hasher, content)| (hasher, content.as_slice())).collect();
        update_together(&mut streams);
        for (hasher, content) in hashers.into_iter().zip(&contents) {
            assert_eq!(hex(hasher.finish()), reference(content), "{count} streams, {} bytes", content.len());
        }
    }
}

/// What more streams cost; printed, because a busy machine says little.
#[test]
#[ignore = "a measurement: run it alone, optimised"]
fn more_streams_take_little_longer_than_one() {
    const LEN: usize = 1 << 20;
    let contents: Vec<Vec<u8>> = (0..16).map(|n| noise(LEN, n)).collect();
    let rate = |count: usize| {
        let times = (0..9).map(|_| {
            let mut hashers = vec![Sha256::new(); count];
            let begin = std::time::Instant::now();
            let streams = hashers.iter_mut().zip(&contents);
            update_together(&mut streams.map(|(hasher, content)| (hasher, content.as_slice())).collect::<Vec<_>>());
            let took = begin.elapsed().as_secs_f64();
            std::hint::black_box(hashers);
            took
        });
        (count * LEN) as f64 / 1e9 / times.fold(f64::INFINITY, f64::min)
    };
    let single = rate(1);
    for count in [1, 2, 3, 4, 6, 8, 12, 16] {
        eprintln!("{count:2} streams: {:.2} GB/s, {:.2} x", rate(count), rate(count) / single);
    }
    eprintln!("at once at best: {}", streams_at_once());
}

fn in_ci() -> bool {
    #[expect(clippy::disallowed_methods, reason = "CI is told apart by its environment")]
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}
