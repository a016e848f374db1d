//! The hash against the published vectors, against `sha2`, and against openssl.
#![expect(clippy::print_stderr, reason = "tests")]

use std::io::Write;
use std::process::{Command, Stdio};

use larder_metal::{BLOCK, Sha256, Way, streams_at_once, update_together};
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

const WAYS: [Way; 2] = [Way::Sha2, Way::AwsLc];

/// Each way that this build has, whatever the processor can.
fn by(way: Way) -> Option<Sha256> {
    let hasher = Sha256::by(way);
    assert_eq!(hasher.is_some(), way.is_here());
    assert!(way.is_here() || way != Way::best());
    hasher
}

#[test]
fn every_way_to_hash_one_stream_says_the_same() {
    for hasher in WAYS.into_iter().filter_map(by) {
        for len in (0..6).flat_map(|n| (n * BLOCK).saturating_sub(9)..=n * BLOCK + 2).chain([100_000, 1 << 20]) {
            let content = noise(len, len as u64);
            for step in [1, 63, 64, 65, 4096, usize::MAX].into_iter().filter(|step| *step > 60 || len < 1000) {
                let mut hasher = hasher.clone();
                content.chunks(step).for_each(|piece| hasher.update(piece));
                assert_eq!(hex(hasher.finish()), reference(&content), "{len} bytes in steps of {step}");
            }
        }
    }
}

/// Streams of all ways side by side: each goes its own.
#[test]
fn streams_of_one_way_are_not_mixed_with_others() {
    let contents: Vec<Vec<u8>> = (0..40).map(|n| noise(n * 37 + 5 * BLOCK, n as u64)).collect();
    let fresh = |n: usize| [Some(Sha256::new()), by(WAYS[0]), by(WAYS[1])][n % 3].clone().unwrap_or_default();
    let mut hashers: Vec<Sha256> = (0..contents.len()).map(fresh).collect();
    for half in [0, 1] {
        let streams = hashers.iter_mut().zip(&contents).map(|(hasher, content)| {
            let middle = content.len() / 2;
            (hasher, if half == 0 { &content[..middle] } else { &content[middle..] })
        });
        update_together(&mut streams.collect::<Vec<_>>());
    }
    for (hasher, content) in hashers.into_iter().zip(&contents) {
        assert_eq!(hex(hasher.finish()), reference(content));
    }
}

/// The same in a process where AWS-LC is told that the processor has no SHA instructions, and none of AVX either.
#[test]
fn the_library_is_right_without_sha_instructions() {
    if !Way::AwsLc.is_here() {
        return;
    }
    // Its own variable: the bits of CPUID that it is to ignore, of leaf 1 and of leaf 7.
    for ignored in [":~0x20000000", "~0x1000000000000000:~0x20000020"] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "every_way_to_hash_one_stream_says_the_same"]).env("OPENSSL_ia32cap", ignored);
        let said = again.output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && text.contains("1 passed"), "{ignored}: {text}");
    }
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
    let alone = WAYS.into_iter().filter_map(by).map(|mut hasher| {
        hasher.update(&bytes);
        hex(hasher.finish())
    });
    let alone: Vec<String> = alone.collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let said = said.split_whitespace().next().unwrap();
    assert_eq!(said, hex(first.finish()));
    assert!(alone.iter().all(|digest| digest == said), "{alone:?}");
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

/// What one stream costs in each way; with `OPENSSL_ia32cap=:~0x20000000` AWS-LC goes without SHA instructions, and with
/// `RUSTFLAGS='--cfg sha2_backend="soft"'` so does `sha2`.
#[test]
#[ignore = "a measurement: run it alone, optimised"]
fn one_stream_in_each_way() {
    let content = noise(1 << 20, 1);
    for hasher in WAYS.into_iter().filter_map(by) {
        let times = (0..60).map(|_| {
            let mut hasher = hasher.clone();
            let begin = std::time::Instant::now();
            hasher.update(&content);
            let took = begin.elapsed().as_secs_f64();
            std::hint::black_box(hasher);
            took
        });
        let rate = content.len() as f64 / 1e6 / times.fold(f64::INFINITY, f64::min);
        eprintln!("{rate:.0} MB/s: {hasher:?}");
    }
}

fn in_ci() -> bool {
    #[expect(clippy::disallowed_methods, reason = "CI is told apart by its environment")]
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}
