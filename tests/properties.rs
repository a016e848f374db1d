//! What must hold for every input, tried with many.
#![expect(clippy::unwrap_used, clippy::type_complexity, reason = "tests; strategies name their parts")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use larder::artifact::{Artifact, File, Found, Origin, Pattern, Reference};
use larder::digest::{ContentHasher, Digests, Sha256};
use larder::fsio::{Partial, Space};
use larder::inventory::Layout;
use larder::lock::Lock;
use larder::manifest::{Declared, Manifests};
use larder::observe::{Access, Proof, Refutation, Sighting, Unfinished};
use larder::plan::{self, Outlook, Plan, Step};
use larder::relpath::RelPath;
use larder::resolve;
use larder::size::Bytes;
use larder::stores::{Defect, FileState, Observed, Unpublished};
use proptest::collection::{hash_set, vec};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

// ── Values ──────────────────────────────────────────────────────────────────────────────────────

fn clean_path() -> impl Strategy<Value = RelPath> {
    "[a-z]{1,6}(/[a-z0-9_ü.-]{1,8}[a-z]){0,2}".prop_filter_map("not clean", |text| text.parse().ok())
}

fn reference() -> impl Strategy<Value = Reference> {
    let hub = "hf:(datasets/)?[a-z0-9]{1,6}/[A-Za-z0-9_]{1,8}(@[a-z0-9]{1,10}(%2F[a-z]{1,4})?)?(/[a-z]{1,5}\\.bin)?";
    let ollama = "ollama:([a-z]{1,5}(:[0-9]{2,4})?/[a-z]{1,5}/)?[a-z0-9]{1,8}(:[a-z0-9._-]{1,6})?";
    let url = "https?://[a-z]{1,8}\\.org(/[a-zA-Z0-9%._-]{1,6}){0,3}(\\?[a-z]=[0-9])?";
    let directory = "file:/[a-z]{1,6}(/[a-z ]{1,6}){0,2}";
    prop_oneof![hub, ollama, url, directory, Just("local".to_owned()), Just("unidentified".to_owned())]
        .prop_filter_map("not a reference", |text| text.parse().ok())
}

fn digests() -> impl Strategy<Value = Digests> {
    let known = prop::option::of(any::<[u8; 32]>().prop_map(Sha256::from_bytes));
    let git = prop::option::of(any::<[u8; 20]>().prop_map(larder::digest::GitSha1::from_bytes));
    let md5 = prop::option::of(any::<[u8; 16]>().prop_map(larder::digest::Md5::from_bytes));
    (known, git, md5).prop_map(|(sha256, git_sha1, md5)| Digests { sha256, git_sha1, md5 })
}

fn file() -> impl Strategy<Value = File> {
    let what = (clean_path(), prop::option::of(0..1u64 << 40), digests());
    let xet = prop::option::of(any::<[u8; 32]>().prop_map(larder::digest::XetHash::from_bytes));
    let flags = (any::<bool>(), (prop::option::of(any::<bool>()), xet), prop::option::of("[a-z]{1,8}"));
    (what, flags, prop::option::of(reference()), vec(reference(), 0..2)).prop_map(
        |((path, size, digests), (first_use, (lfs, xet), role), source, mirrors)| File {
            path,
            size,
            digests,
            first_use,
            lfs,
            xet,
            role,
            source: source.map(Box::new),
            mirrors,
        },
    )
}

fn artifact() -> impl Strategy<Value = Artifact> {
    let names = ("[a-z][a-z0-9:.+-]{0,10}", "[a-z]{1,8}", "\\PC{0,16}", prop::option::of("[0-9a-f]{40}"));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let pattern = prop::option::of(("\\PC{0,12}", 0..99usize).prop_map(|(glob, count)| Pattern { glob, count }));
    let place = (reference(), prop::option::of(clean_path()));
    (names, place, flags, pattern, vec(file(), 0..5)).prop_map(
        |(
            (name, store, declared, revision),
            (source, folder),
            (pins, complete, whole, irreplaceable),
            pattern,
            files,
        )| {
            Artifact {
                name,
                store,
                folder,
                source,
                declared,
                revision,
                origin: if pins { Origin::Pins } else { Origin::Upstream },
                complete,
                whole,
                irreplaceable,
                ollama: None,
                pattern,
                files,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_lock_survives_its_own_text(artifacts in vec(artifact(), 0..6)) {
        let lock = Lock { artifacts };
        let text = lock.to_text();
        let again = Lock::parse(Path::new("inventory.lock"), &text);
        prop_assert_eq!(again.as_ref(), Ok(&lock));
        prop_assert_eq!(again.unwrap().to_text(), text);
    }

    #[test]
    fn a_path_that_is_accepted_stays_below_its_root(text in "([./\\\\a-zC:]|\\PC){0,20}") {
        if let Ok(path) = text.parse::<RelPath>() {
            let joined = path.under(Path::new("/root/of"));
            let climbs = joined.components().any(|part| matches!(part, std::path::Component::ParentDir));
            prop_assert!(!climbs && joined.starts_with("/root/of") && joined != Path::new("/root/of"));
            prop_assert_eq!(path.join(&path).under(Path::new("/")), Path::new("/").join(&text).join(&text));
        }
    }

    #[test]
    fn a_reference_survives_being_printed(reference in reference()) {
        prop_assert_eq!(reference.to_string().parse(), Ok(reference));
    }

    #[test]
    fn sizes_are_read_as_they_are_written(bytes in 0..9_000_000_000_000_000u64) {
        // Beyond 2^53 a text goes through a fraction; no disk is that large.
        prop_assert_eq!(bytes.to_string().parse(), Ok(Bytes(bytes)));
        let printed: Bytes = Bytes(bytes).to_string().parse().unwrap();
        prop_assert!(printed.0.abs_diff(bytes) <= bytes / 20 + 1, "{} became {}", bytes, printed.0);
    }

    #[test]
    fn smaller_sizes_never_print_larger(one in 0..1u64 << 50, two in 0..1u64 << 50) {
        let read = |bytes: u64| Bytes(bytes).to_string().parse::<Bytes>().unwrap();
        prop_assert!(read(one.min(two)) <= read(one.max(two)));
    }
}

// ── Content ─────────────────────────────────────────────────────────────────────────────────────

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn however_content_arrives_the_same_is_proven(
        bytes in vec(any::<u8>(), 0..4000),
        cuts in vec(any::<prop::sample::Index>(), 0..6),
        stops in vec(any::<bool>(), 6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let hasher = || ContentHasher::new().with_git_sha1(bytes.len() as u64).with_md5();
        let open = || Partial::open(dir.path(), "key", hasher(), None).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut partial = open();
        for (piece, stops) in cuts.windows(2).zip(stops.iter().cycle()) {
            partial.append(&bytes[piece[0]..piece[1]]).unwrap();
            if *stops {
                drop(partial);
                partial = open();
                prop_assert_eq!(partial.len(), piece[1] as u64);
            }
        }
        let mut whole = hasher();
        whole.update(&bytes);
        let whole = whole.finish();
        let proven = partial.prove(Some(bytes.len() as u64), &whole).unwrap();
        prop_assert_eq!(proven.digests(), &whole);
    }

    #[test]
    fn content_with_one_other_byte_is_never_proven(
        bytes in vec(any::<u8>(), 1..2000), at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Digests::sha256(Sha256::of(&bytes));
        let mut other = bytes.clone();
        other[at.index(bytes.len())] ^= flip;
        let mut partial = Partial::open(dir.path(), "key", ContentHasher::new(), None).unwrap();
        partial.append(&other).unwrap();
        prop_assert!(partial.prove(Some(bytes.len() as u64), &wanted).is_err());
    }
}

// ── Plans ───────────────────────────────────────────────────────────────────────────────────────

const STORES: [&str; 2] = ["huggingface", "swarmui"];

/// A lab in some state: artifacts, what was seen of each file, and what was measured of it.
#[derive(Debug, Clone)]
struct World {
    artifacts: Vec<Artifact>,
    states: Vec<Vec<(FileState, Proof)>>,
    published: Vec<bool>,
    partials: u64,
    outlook: Outlook,
}

impl World {
    fn sightings(&self) -> Vec<Sighting<'_>> {
        let seen = self.artifacts.iter().zip(&self.states).zip(&self.published);
        seen.map(|((artifact, states), published)| Sighting {
            artifact,
            access: Access::Open,
            write_refusal: None,
            layout: Layout::Folder,
            observed: Observed {
                files: states.iter().map(|(state, _)| state.clone()).collect(),
                published: published.then_some(()).ok_or_else(|| Unpublished::Missing { what: "it".to_owned() }),
            },
            proofs: states.iter().map(|(_, proof)| proof.clone()).collect(),
            partials: artifact
                .files
                .iter()
                .map(|file| {
                    let bytes = self.partials.min(file.size.unwrap_or(0));
                    Unfinished { bytes, allocated: bytes }
                })
                .collect(),
            matches: Vec::new(),
            clashes: Vec::new(),
        })
        .collect()
    }

    fn plan(&self) -> Plan {
        plan::plan(&self.sightings(), &self.outlook)
    }

    /// The world once every step of `plan` has succeeded.
    fn after(&self, plan: &Plan) -> Self {
        let mut after = self.clone();
        for (index, entry) in plan.artifacts.iter().enumerate() {
            for step in &entry.steps {
                match step {
                    Step::Fetch { file, .. } | Step::Reuse { file, .. } => {
                        let size = after.artifacts[index].files[*file].size.unwrap_or(1);
                        after.states[index][*file] = (FileState::Present(found(size)), Proof::Proven { at: 1 });
                    }
                    Step::Publish { .. } => after.published[index] = true,
                    Step::Install { .. } => {}
                }
            }
        }
        after
    }
}

fn found(size: u64) -> Found {
    Found { path: PathBuf::from("/store/x"), size, mtime_ns: 0, inode: 1, device: 1, owner: (0, 0) }
}

fn state(size: u64) -> impl Strategy<Value = (FileState, Proof)> {
    let refuted = |kind: &str| {
        let (kind, detail) = (kind.to_owned(), "its content is wrong".to_owned());
        Proof::Refuted(Box::new(Refutation { read_at: Some(1), kind, detail, ranges: Vec::new() }))
    };
    let wrong = FileState::Wrong { defect: Defect::Empty, found: None };
    let folder = FileState::Wrong { defect: Defect::NotAFile, found: None };
    let closed = FileState::Unreadable { path: PathBuf::from("/store/x"), is_denied: true, reason: "no".to_owned() };
    prop_oneof![
        Just((FileState::Missing, Proof::Unknown)),
        Just((FileState::Present(found(size)), Proof::Unknown)),
        Just((FileState::Present(found(size)), Proof::Proven { at: 1 })),
        Just((FileState::Present(found(size)), refuted("corrupt"))),
        Just((FileState::Present(found(size)), refuted("unreadable"))),
        Just((FileState::Staged(found(size)), Proof::Proven { at: 1 })),
        Just((FileState::Staged(found(size)), refuted("corrupt"))),
        Just((wrong, Proof::Unknown)),
        Just((folder, Proof::Unknown)),
        Just((closed, Proof::Unknown)),
    ]
}

/// An artifact whose files have one of few contents, so that artifacts share some, with their states.
fn planned_artifact() -> impl Strategy<Value = (Vec<(File, (FileState, Proof))>, usize, Option<usize>, bool)> {
    let file = (0..6u8, any::<bool>()).prop_flat_map(|(content, has_digest)| {
        let size = 1000 * (u64::from(content) + 1);
        let digests = if has_digest { Digests::sha256(Sha256::of(&[content])) } else { Digests::default() };
        let bare = File::named("x".parse().unwrap());
        state(size).prop_map(move |state| (File { size: Some(size), digests, ..bare.clone() }, state))
    });
    (vec(file, 1..5), 0..STORES.len(), prop::option::of(0..3usize), any::<bool>())
}

fn world(free: impl Strategy<Value = u64>) -> impl Strategy<Value = World> {
    let refused = hash_set(0..3usize, 0..2);
    let flags = (any::<bool>(), any::<bool>(), 0..3000u64);
    (vec(planned_artifact(), 1..6), free, refused, flags).prop_map(
        |(planned, free, refused, (reuse, upstream, partials))| {
            let mut world = World {
                artifacts: Vec::new(),
                states: Vec::new(),
                published: Vec::new(),
                partials,
                outlook: Outlook::default(),
            };
            for (index, (files, store, repo, published)) in planned.into_iter().enumerate() {
                let (mut files, states): (Vec<File>, Vec<_>) = files.into_iter().unzip();
                for (number, file) in files.iter_mut().enumerate() {
                    file.path = format!("f{number}").parse().unwrap();
                }
                let source = repo.map_or(Reference::Local, |repo| format!("hf:acme/r{repo}").parse().unwrap());
                world.artifacts.push(Artifact {
                    name: format!("a{index}"),
                    store: STORES[store].to_owned(),
                    declared: String::new(),
                    revision: Some("1".repeat(40)),
                    origin: Origin::Upstream,
                    complete: true,
                    whole: false,
                    folder: None,
                    irreplaceable: false,
                    ollama: None,
                    pattern: None,
                    files,
                    source,
                });
                world.states.push(states);
                world.published.push(published);
            }
            let refusal = plan::Refusal { reason: "gated".to_owned(), hint: None };
            for repo in refused {
                world.outlook.refusals.refuse_place(format!("hf:acme/r{repo}@{}", "1".repeat(40)), refusal.clone());
            }
            (world.outlook.reuse, world.outlook.upstream) = (reuse, upstream);
            let space = Space { path: PathBuf::from("/store"), device: 1, bytes: free, inodes: Some(1000) };
            world.outlook.spaces =
                STORES.iter().map(|store| ((*store).to_owned(), space.clone())).collect::<HashMap<_, _>>();
            world
        },
    )
}

/// What a step adds to the disk.
fn bytes_of(step: &Step) -> u64 {
    match step {
        Step::Fetch { bytes, .. } => bytes.unwrap_or(0),
        Step::Reuse { bytes, .. } => *bytes,
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(world in world(Just(1 << 40))) {
        let plan = world.plan();
        let again = world.after(&plan).plan();
        for (before, after) in plan.artifacts.iter().zip(&again.artifacts) {
            // What could not be done still cannot; new content elsewhere may only open a way to it.
            if before.obstacles.is_empty() {
                prop_assert!(after.steps.is_empty() && after.obstacles.is_empty(), "{:?}\nthen {:?}", before, after);
            } else {
                prop_assert!(after.obstacles.len() <= before.obstacles.len(), "{:?}\nthen {:?}", before, after);
            }
        }
    }

    #[test]
    fn a_plan_is_the_same_every_time(world in world(0..200_000_000u64)) {
        prop_assert_eq!(format!("{:?}", world.plan()), format!("{:?}", world.plan()));
    }

    #[test]
    fn what_is_here_and_not_known_to_be_wrong_is_never_touched(world in world(Just(1 << 40))) {
        let plan = world.plan();
        for (entry, states) in plan.artifacts.iter().zip(&world.states) {
            for step in &entry.steps {
                if let Step::Fetch { file, .. } | Step::Reuse { file, .. } = step {
                    let (state, proof) = &states[*file];
                    let is_here = matches!(state, FileState::Present(_) | FileState::Staged(_));
                    prop_assert!(!is_here || matches!(proof, Proof::Refuted(_)), "{:?}", step);
                    let is_closed = matches!(state, FileState::Unreadable { .. })
                        || matches!(state, FileState::Wrong { defect: Defect::NotAFile, .. })
                        || matches!(proof, Proof::Refuted(wrong) if wrong.is_forbidden());
                    prop_assert!(!is_closed, "{:?}", step);
                }
            }
        }
    }

    #[test]
    fn no_step_goes_where_it_was_refused(world in world(Just(1 << 40))) {
        for step in world.plan().artifacts.iter().flat_map(|entry| &entry.steps) {
            if let Step::Fetch { from, .. } = step {
                prop_assert!(world.outlook.upstream && !from.is_empty());
                let refused = |remote: &larder::artifact::Remote| world.outlook.refusals.of(remote).is_some();
                prop_assert!(!from.iter().any(refused), "{:?}", step);
            }
        }
    }

    #[test]
    fn a_plan_never_fills_a_disk(world in world((64u64 << 20) - 5000..(64u64 << 20) + 40_000)) {
        let plan = world.plan();
        let taken: u64 = plan.artifacts.iter().flat_map(|entry| &entry.steps).map(bytes_of).sum();
        let free = world.outlook.spaces[STORES[0]].bytes;
        prop_assert!(taken == 0 || taken + (64 << 20) <= free, "{} of {}", taken, free);
        let needed: u64 = plan.rooms.iter().map(|room| room.needed).sum();
        prop_assert_eq!(needed, taken);
    }

    #[test]
    fn everything_that_is_wrong_has_a_step_or_an_obstacle(world in world(0..200_000_000u64)) {
        for (entry, states) in world.plan().artifacts.iter().zip(&world.states) {
            let is_right = |(state, proof): &(FileState, Proof)| {
                matches!(state, FileState::Present(_) | FileState::Staged(_)) && !matches!(proof, Proof::Refuted(_))
            };
            let needs_work = !states.iter().all(is_right);
            prop_assert!(!needs_work || !entry.steps.is_empty() || !entry.obstacles.is_empty(), "{:?}", entry);
        }
    }
}

// ── From manifests to the lock ──────────────────────────────────────────────────────────────────

const DECLARED: &str = "[[artifact]]\nname = \"sd\"\nstore = \"cache\"\nsource = \"hf:acme/sd@main\"\n\
    include = [\"*.json\"]\nexclude = [\"x*\"]\nfile = [{ path = \"a.json\", size = 3 }]\n";

fn declared(text: &str) -> Declared {
    Manifests::parse(Path::new("m.toml"), text).unwrap().artifacts.remove(0)
}

#[test]
fn the_fingerprint_changes_with_what_is_locked() {
    let before = resolve::fingerprint(&declared(DECLARED));
    let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (from, to) in [
        ("hf:acme/sd@main", "hf:acme/sd@v2"),
        ("hf:acme/sd@main", "hf:acme/other@main"),
        ("store = \"cache\"", "store = \"plain\""),
        ("*.json", "*.bin"),
        ("x*", "y*"),
        ("a.json", "b.json"),
        ("size = 3", "size = 4"),
        ("size = 3", "size = 3, source = \"https://example.org/a.json\""),
        ("size = 3", "size = 3, mirrors = [\"hf:acme/mirror/a.json\"]"),
        ("size = 3", &format!("size = 3, sha256 = \"{sha}\"")),
        ("size = 3", "size = 3, md5 = \"900150983cd24fb0d6963f7d28e17f72\""),
        ("include", "complete = true\ninclude"),
        ("include", "folder = \"a/b\"\ninclude"),
        ("include", "mirrors = [\"hf:acme/mirror\"]\ninclude"),
        ("include", "match = { glob = \"*\", count = 3 }\ninclude"),
    ] {
        assert!(DECLARED.contains(from));
        let after = resolve::fingerprint(&declared(&DECLARED.replacen(from, to, 1)));
        assert_ne!(before, after, "{from} → {to} is not seen");
    }
}

#[test]
fn the_fingerprint_stays_with_what_is_for_people() {
    let before = resolve::fingerprint(&declared(DECLARED));
    for more in [
        "title = \"T\"",
        "purpose = \"P\"",
        "note = \"N\"",
        "tags = [\"t\"]",
        "license = \"MIT\"",
        "gated = true",
        "size = \"3 GB\"",
        "total = 3",
        "documented = \"~3 GB\"",
        "smoke = \"s\"",
        "download = \"pipeline\"",
        "# a comment",
    ] {
        let after = resolve::fingerprint(&declared(&DECLARED.replacen("include", &format!("{more}\ninclude"), 1)));
        assert_eq!(before, after, "{more} is for people only");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pins_become_the_same_lock_in_whatever_order_they_are_listed(
        paths in hash_set("[a-z]{1,6}(/[a-z]{1,6})?", 1..6), rotate in 0..6usize, layout in 0..3usize,
    ) {
        let layout = [Layout::HfCache, Layout::Folder, Layout::Ollama][layout];
        let mut paths: Vec<String> = paths.into_iter().collect();
        let manifest = |paths: &[String]| {
            let files: Vec<String> = paths.iter().map(|path| format!("{{ path = \"{path}\", size = {} }}", path.len())).collect();
            declared(&format!("[[artifact]]\nname = \"x\"\nstore = \"s\"\nsource = \"hf:a/b\"\nfile = [{}]\n", files.join(", ")))
        };
        let one = resolve::from_pins(&manifest(&paths), layout);
        prop_assert_eq!(&one, &resolve::from_pins(&manifest(&paths), layout));
        let by = rotate % paths.len();
        paths.rotate_left(by);
        prop_assert_eq!(&one.files, &resolve::from_pins(&manifest(&paths), layout).files);
        prop_assert!(one.files.is_sorted_by(|a, b| a.path < b.path) && one.complete);
    }
}
