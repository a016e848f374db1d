//! Buckets: what is put into a real S3 server and taken from it, interrupted, damaged, refused, and counted.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::Stdio;

use larder::artifact::{Reference, Remote};
use larder::bucket::{Credentials, Place};
use larder::digest::{ContentName, Digests, Sha256};
use larder::retry::RetryPolicy;
use larder::sources::{Body, ByteRange, Listing, Source, SourceError, SourceSettings, Sources};

#[path = "support/bucket_lab.rs"]
mod bucket_lab;
#[path = "contract/source.rs"]
mod contract;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "support/program.rs"]
mod program;
#[path = "support/s3s.rs"]
mod s3s;

use bucket_lab::{FOLDER, artifact, blob, command, fill, has_all, machine, noise, run, write_inventory};
use contract::{Case, suite};
use program::{Lab, Said};
use s3s::{KEY, S3, SECRET};

const MIB: u64 = 1 << 20;
/// Larger than what is put in one request: five parts of 8 MiB.
const LARGE: u64 = 40 * MIB - 3;

type Files = Vec<(&'static str, Vec<u8>)>;

fn small_files() -> Files {
    vec![("config.json", b"{}".to_vec()), ("empty", Vec::new()), ("sub/middle.bin", noise(3_000_001, 1))]
}

fn large_file() -> Files {
    vec![("large.bin", noise(LARGE as usize, 2))]
}

fn tiny(files: &Files) -> String {
    artifact("tiny", "local", "", files)
}

/// A machine that has everything.
fn full(name: &str, s3: &S3, files: &Files) -> Lab {
    let lab = machine(name, s3, &["fleet"], &tiny(files));
    fill(&lab, files);
    lab
}

#[track_caller]
fn must_be(said: &Said, code: i32) {
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
}

/// How often the server was asked this.
fn count(s3: &S3, method: &str, what: &str) -> usize {
    s3.requests().iter().filter(|request| request.starts_with(method) && request.contains(what)).count()
}

#[test]
fn what_one_machine_puts_another_takes() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files: Files = small_files().into_iter().chain(large_file()).collect();
    let (from, to) = (full("pc1", &s3, &files), machine("pc2", &s3, &["fleet"], &tiny(&files)));
    let shown = run(&from, &["push", "--dry-run"]);
    must_be(&shown, 0);
    assert!(shown.out.contains("tiny/sub/middle.bin") && s3.keys("fleet").is_empty(), "{}", shown.out);
    must_be(&run(&from, &["push"]), 2);
    assert!(s3.keys("fleet").is_empty(), "nobody was there to ask");
    s3.count_anew();
    must_be(&run(&from, &["push", "--yes", "--json"]), 0);
    assert_eq!(
        (count(&s3, "POST", "/blobs/"), count(&s3, "PUT", "/blobs/")),
        (2, 3 + 5),
        "begin, end, parts, small ones"
    );
    assert!(s3.bytes().0 < LARGE + 4 * MIB, "nothing was sent twice");
    let blobs: Vec<String> = s3.keys("fleet").into_iter().filter(|key| key.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), files.len());
    for (_, content) in &files {
        assert!(std::fs::read(s3.on_disk("fleet", &blob(content))).unwrap() == *content);
    }
    s3.count_anew();
    let again = run(&from, &["push", "--yes"]);
    must_be(&again, 0);
    assert!(again.out.contains("4 there already"), "{}", again.out);
    assert_eq!((count(&s3, "PUT", "/blobs/"), count(&s3, "HEAD", "/blobs/")), (0, 4));
    s3.count_anew();
    let planned = run(&to, &["plan"]);
    assert!(planned.out.contains("fleet (bucket)"), "{}", planned.out);
    assert_eq!(s3.requests().len(), 2, "one list, and whether it answers: {:?}", s3.requests());
    let limited = run(&to, &["apply", "--yes", "--max-download", "1MB"]);
    must_be(&limited, 4);
    assert!(limited.out.contains("download limit") && !has_all(&to, &files), "{}", limited.out);
    s3.count_anew();
    // A bucket in the lab's own network costs nothing, and says so.
    write_inventory(&to, "pc2", &s3, &["fleet"], ", metered = false");
    must_be(&run(&to, &["apply", "--yes", "--max-download", "1MB"]), 0);
    assert!(has_all(&to, &files));
    assert!(s3.bytes().1 < LARGE + 4 * MIB, "nothing came twice");
    s3.count_anew();
    must_be(&run(&to, &["apply", "--yes"]), 0);
    assert!(s3.requests().is_empty(), "nobody is asked for nothing");
}

#[test]
fn a_killed_push_sends_only_what_is_missing() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = large_file();
    let lab = full("pc1", &s3, &files);
    s3.stop_after(Some(20 * MIB), None);
    let mut pushing = command(&lab, &["push", "--yes"]);
    let mut pushing = pushing.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for_stop();
    pushing.kill().unwrap();
    pushing.wait().unwrap();
    assert!(!s3.keys("fleet").contains(&blob(&files[0].1)), "nothing is visible before its end");
    s3.count_anew();
    must_be(&run(&lab, &["push", "--yes"]), 0);
    let (up, _) = s3.bytes();
    assert!(up < LARGE - 7 * MIB, "{up} bytes: at least one part was there");
    assert_eq!(count(&s3, "POST", "/blobs/"), 1, "the same upload was completed");
    assert!(std::fs::read(s3.on_disk("fleet", &blob(&files[0].1))).unwrap() == files[0].1);
    let left: Vec<_> =
        std::fs::read_dir(lab.path("state/uploads")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_none_or(|end| end != "upload")), "{left:?}");
}

#[test]
fn a_server_that_dies_and_comes_back_is_gone_on_with() {
    let Some(mut s3) = S3::start(&["fleet"]) else { return };
    let files = large_file();
    let (from, to) = (full("pc1", &s3, &files), machine("pc2", &s3, &["fleet"], &tiny(&files)));
    s3.stop_after(Some(20 * MIB), None);
    let mut pushing = command(&from, &["push", "--yes"]);
    let mut pushing = pushing.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for_stop();
    s3.kill();
    s3.count_anew();
    assert_eq!(pushing.wait().unwrap().code(), Some(1));
    s3.restart();
    s3.count_anew();
    must_be(&run(&from, &["push", "--yes"]), 0);
    assert!(s3.bytes().0 < LARGE - 7 * MIB, "{} bytes: at least one part was there", s3.bytes().0);
    s3.stop_after(None, Some(30 * MIB));
    let mut taking = command(&to, &["apply", "--yes"]);
    let mut taking = taking.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for_stop();
    s3.kill();
    s3.count_anew();
    assert_ne!(taking.wait().unwrap().code(), Some(0));
    s3.restart();
    s3.count_anew();
    must_be(&run(&to, &["apply", "--yes"]), 0);
    assert!(s3.bytes().1 < 10 * MIB + 2 * 7 * MIB + MIB, "{} bytes", s3.bytes().1);
    assert!(has_all(&to, &files));
}

#[test]
fn an_upload_of_what_is_not_wanted_any_more_is_given_up() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = large_file();
    let lab = full("pc1", &s3, &files);
    s3.stop_after(Some(20 * MIB), None);
    let mut pushing = command(&lab, &["push", "--yes"]);
    let mut pushing = pushing.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for_stop();
    pushing.kill().unwrap();
    pushing.wait().unwrap();
    s3.count_anew();
    let other: Files = vec![("other.bin", noise(5000, 8))];
    lab.write("manifests/lab.toml", tiny(&files) + &artifact("other", "local", "", &other));
    fill(&lab, &other);
    must_be(&run(&lab, &["push", "--yes", "--only", "other"]), 0);
    assert_eq!(count(&s3, "DELETE", "/blobs/"), 0, "it may still be gone on with");
    lab.write("manifests/lab.toml", artifact("other", "local", "", &other));
    must_be(&run(&lab, &["push", "--yes"]), 0);
    assert_eq!(count(&s3, "DELETE", "/blobs/"), 1);
    assert!(std::fs::read_dir(lab.path("state/uploads")).unwrap().count() == 1, "only the lock is left");
}

#[test]
fn an_upload_that_the_server_forgot_begins_anew() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = large_file();
    let lab = full("pc1", &s3, &files);
    s3.stop_after(Some(20 * MIB), None);
    let mut pushing = command(&lab, &["push", "--yes"]);
    let mut pushing = pushing.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for_stop();
    pushing.kill().unwrap();
    pushing.wait().unwrap();
    s3.count_anew();
    let ledger = std::fs::read_dir(lab.path("state/uploads")).unwrap().map(|entry| entry.unwrap().path());
    let ledger = ledger.into_iter().find(|path| path.extension().is_some_and(|end| end == "upload")).unwrap();
    let text = std::fs::read_to_string(&ledger).unwrap();
    let id = text.split("\"upload\":\"").nth(1).unwrap().split('"').next().unwrap();
    let forged = text.replace(id, "00000000-0000-4000-8000-000000000000");
    larder::fsio::write_atomic(&ledger, forged.as_bytes(), &larder::fsio::WriteOptions::default()).unwrap();
    must_be(&run(&lab, &["push", "--yes"]), 0);
    assert!(std::fs::read(s3.on_disk("fleet", &blob(&files[0].1))).unwrap() == files[0].1);
}

#[test]
fn a_killed_apply_takes_only_what_is_missing() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = large_file();
    let (from, to) = (full("pc1", &s3, &files), machine("pc2", &s3, &["fleet"], &tiny(&files)));
    must_be(&run(&from, &["push", "--yes"]), 0);
    s3.stop_after(None, Some(30 * MIB));
    let mut taking = command(&to, &["apply", "--yes"]);
    let mut taking = taking.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    s3.wait_for_stop();
    taking.kill().unwrap();
    taking.wait().unwrap();
    s3.count_anew();
    must_be(&run(&to, &["apply", "--yes"]), 0);
    // Two connections lose the chunk under way, and what is between the server and the disk.
    assert!(s3.bytes().1 < 10 * MIB + 2 * 7 * MIB + MIB, "{} bytes", s3.bytes().1);
    assert!(has_all(&to, &files));
}

#[test]
fn a_bucket_mends_only_what_is_wrong() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = large_file();
    let (from, to) = (full("pc1", &s3, &files), machine("pc2", &s3, &["fleet"], &tiny(&files)));
    must_be(&run(&from, &["push", "--yes"]), 0);
    must_be(&run(&to, &["apply", "--yes"]), 0);
    let place = to.path("home/plain/large.bin");
    let file = std::fs::OpenOptions::new().write(true).open(&place).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rotten", 21 * MIB).unwrap();
    drop(file);
    must_be(&run(&to, &["verify", "--full"]), 3);
    s3.count_anew();
    must_be(&run(&to, &["repair", "--yes"]), 0);
    assert!(s3.bytes().1 < 6 * MIB, "one chunk of 4 MiB came: {} bytes", s3.bytes().1);
    assert!(has_all(&to, &files));
}

#[test]
fn what_is_rotten_here_is_not_put() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files: Files = small_files().into_iter().chain(large_file()).collect();
    let lab = full("pc1", &s3, &files);
    let mut rotten = files[3].1.clone();
    *rotten.last_mut().unwrap() ^= 1;
    lab.write("home/plain/large.bin", &rotten);
    lab.write("home/plain/sub/middle.bin", noise(3_000_001, 9));
    let pushed = run(&lab, &["push", "--yes"]);
    must_be(&pushed, 4);
    assert!(pushed.out.contains("tiny/large.bin") && pushed.out.contains("tiny/sub/middle.bin"), "{}", pushed.out);
    let blobs: Vec<String> = s3.keys("fleet").into_iter().filter(|key| key.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 2, "{blobs:?}");
    fill(&lab, &files);
    must_be(&run(&lab, &["push", "--yes"]), 0);
    assert!(std::fs::read(s3.on_disk("fleet", &blob(&files[3].1))).unwrap() == files[3].1);
}

#[test]
fn a_bucket_with_wrong_bytes_is_named_and_another_one_helps() {
    let Some(s3) = S3::start(&["fleet", "spare"]) else { return };
    let files = small_files();
    let from = machine("pc1", &s3, &["fleet", "spare"], &tiny(&files));
    fill(&from, &files);
    must_be(&run(&from, &["push", "fleet", "--yes"]), 0);
    let key = blob(&files[2].1);
    let wrong = noise(3_000_001, 7);
    larder::fsio::write_atomic(&s3.on_disk("fleet", &key), &wrong, &larder::fsio::WriteOptions::default()).unwrap();
    let alone = machine("pc2", &s3, &["fleet"], &tiny(&files));
    let applied = run(&alone, &["apply", "--yes"]);
    must_be(&applied, 4);
    assert!(
        applied.err.contains("bucket:fleet") || applied.out.contains("bucket:fleet"),
        "{}{}",
        applied.out,
        applied.err
    );
    assert!(!alone.path("home/plain/sub/middle.bin").exists() && alone.path("home/plain/config.json").exists());
    must_be(&run(&from, &["push", "spare", "--yes"]), 0);
    let to = machine("pc3", &s3, &["fleet", "spare"], &tiny(&files));
    must_be(&run(&to, &["apply", "--yes"]), 0);
    assert!(has_all(&to, &files));
}

#[test]
fn a_large_file_comes_though_one_of_two_buckets_has_it_wrong() {
    let Some(s3) = S3::start(&["fleet", "spare"]) else { return };
    let files = large_file();
    let from = machine("pc1", &s3, &["fleet", "spare"], &tiny(&files));
    fill(&from, &files);
    must_be(&run(&from, &["push", "fleet", "--yes"]), 0);
    must_be(&run(&from, &["push", "spare", "--yes"]), 0);
    let wrong = noise(LARGE as usize, 5);
    let place = s3.on_disk("fleet", &blob(&files[0].1));
    larder::fsio::write_atomic(&place, &wrong, &larder::fsio::WriteOptions::default()).unwrap();
    let to = machine("pc2", &s3, &["fleet", "spare"], &tiny(&files));
    s3.count_anew();
    must_be(&run(&to, &["apply", "--yes"]), 0);
    assert!(has_all(&to, &files));
    assert!(count(&s3, "GET", "/fleet/lab/blobs/") > 0 && count(&s3, "GET", "/spare/lab/blobs/") > 0);
}

/// Everything larder said, with all logging there is.
fn everything_said(lab: &Lab, variables: &[(&str, &str)], arguments: &[&str]) -> Said {
    let mut command = lab.command(arguments);
    command.envs(variables.iter().copied()).env("LARDER_LOG", "trace");
    program::said(&mut command, &lab.path(""))
}

#[test]
fn keys_are_never_told() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = small_files();
    let (from, to) = (full("pc1", &s3, &files), machine("pc2", &s3, &["fleet"], &tiny(&files)));
    let right = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let wrong = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-0123456789")];
    let other = [("AWS_ACCESS_KEY_ID", "SOMEBODYELSE"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    for (variables, code) in [(wrong, 1), (other, 1), (right, 0)] {
        let said = everything_said(&from, &variables, &["-vv", "push", "--yes"]);
        must_be(&said, code);
        let taken = everything_said(&to, &variables, &["-vv", "apply", "--yes"]);
        must_be(&taken, if code == 0 { 0 } else { 4 });
        for secret in [variables[1].1, "Signature="] {
            let all = [&said.out, &said.err, &taken.out, &taken.err];
            assert!(all.iter().all(|text| !text.contains(secret)), "{secret}\n{}{}{}", said.err, taken.out, taken.err);
        }
        if code != 0 {
            assert!(said.err.contains("bucket fleet") && said.err.contains("refuses"), "{}", said.err);
            assert!(said.err.contains("check the key"), "{}", said.err);
            assert!(!said.err.contains(variables[0].1), "the key's name is nobody's business either: {}", said.err);
            assert!(s3.keys("fleet").is_empty());
        }
    }
    for folder in ["state", "home"] {
        for entry in walkdir::WalkDir::new(from.path(folder)).into_iter().map(Result::unwrap) {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{}", entry.path().display());
        }
    }
}

#[test]
fn keys_come_from_profiles_too() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = small_files();
    let lab = full("pc1", &s3, &files);
    let none = lab.run(&["push", "--yes"]);
    must_be(&none, 1);
    assert!(none.err.contains("asks for credentials") && none.err.contains("AWS_ACCESS_KEY_ID"), "{}", none.err);
    let pair = |key: &str, secret: &str| format!("aws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    let text = format!("[default]\n{}[fleet]\n{}", pair("NOBODY", "nothing"), pair(KEY, SECRET));
    lab.write("home/.aws/credentials", text);
    must_be(&lab.run(&["push", "--yes"]), 1);
    write_inventory(&lab, "pc1", &s3, &["fleet"], ", profile = \"fleet\"");
    must_be(&lab.run(&["push", "--yes"]), 0);
    let overruled =
        everything_said(&lab, &[("AWS_ACCESS_KEY_ID", "X"), ("AWS_SECRET_ACCESS_KEY", "Y")], &["push", "--yes"]);
    must_be(&overruled, 0);
}

#[test]
fn a_missing_bucket_is_explained_and_stops_nobody() {
    let Some(s3) = S3::start(&["other"]) else { return };
    let files = small_files();
    let lab = full("pc1", &s3, &files);
    let pushed = run(&lab, &["push", "--yes"]);
    must_be(&pushed, 1);
    assert!(pushed.err.contains("bucket fleet (s3://fleet/lab) does not exist"), "{}", pushed.err);
    let to = machine("pc2", &s3, &["fleet"], &tiny(&files));
    let planned = run(&to, &["plan"]);
    must_be(&planned, 0);
    assert!(planned.err.contains("nothing is taken from there"), "{}", planned.err);
    assert_eq!(s3.keys("other"), Vec::<String>::new());
}

#[test]
fn two_machines_put_the_same_at_once() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files: Files = small_files().into_iter().chain(large_file()).collect();
    let labs = ["pc1", "pc2", "pc3"].map(|name| full(name, &s3, &files));
    std::thread::scope(|scope| {
        let pushes: Vec<_> = labs.iter().map(|lab| scope.spawn(|| run(lab, &["push", "--yes"]))).collect();
        pushes.into_iter().for_each(|push| must_be(&push.join().unwrap(), 0));
    });
    for (_, content) in &files {
        assert!(std::fs::read(s3.on_disk("fleet", &blob(content))).unwrap() == *content);
    }
    for name in ["pc1", "pc2", "pc3"] {
        assert!(s3.on_disk("fleet", &format!("{FOLDER}/machines/{name}/state.json")).exists());
    }
}

#[test]
fn gated_artifacts_stay_here_unless_allowed() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let (open, closed): (Files, Files) = (vec![("open.bin", noise(5000, 3))], vec![("closed.bin", noise(6000, 4))]);
    let manifest = format!(
        "{}{}",
        artifact("open", "local", "", &open),
        artifact("closed", "hf:acme/closed@0123456789abcdef0123456789abcdef01234567", "gated = true\n", &closed)
    );
    let lab = machine("pc1", &s3, &["fleet"], &manifest);
    fill(&lab, &open);
    fill(&lab, &closed);
    let pushed = run(&lab, &["push", "--yes"]);
    must_be(&pushed, 0);
    assert!(pushed.out.contains("withheld") && pushed.out.contains("closed"), "{}", pushed.out);
    assert!(!s3.keys("fleet").contains(&blob(&closed[0].1)) && s3.keys("fleet").contains(&blob(&open[0].1)));
    must_be(&run(&lab, &["push", "--yes", "--gated"]), 0);
    assert!(s3.keys("fleet").contains(&blob(&closed[0].1)));
}

#[test]
fn mistakes_about_buckets_are_explained() {
    let sources = "[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n[sources]\nbuckets = [\n\
        { name = \"a\", url = \"s3://fleet\", endpoint = \"http://10.0.0.1:9000\" },\n\
        { name = \"a\", url = \"s3://fleet\", endpoint = \"ftp://x\" }]\n";
    let lab = Lab::new(sources, "");
    let said = lab.run(&["push"]);
    must_be(&said, 2);
    for part in ["without encryption", "two buckets are called `a`", "ftp://x"] {
        assert!(said.err.contains(part), "{part}: {}", said.err);
    }
    lab.write("inventory.toml", sources.replace("s3://fleet", "https://key:secret@fleet"));
    let said = lab.run(&["push"]);
    must_be(&said, 2);
    assert!(said.err.contains("s3://BUCKET") && said.err.contains("inventory.toml:"), "{}", said.err);
    lab.write("inventory.toml", "[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n");
    let said = lab.run(&["push"]);
    must_be(&said, 2);
    assert!(said.err.contains("no bucket"), "{}", said.err);
}

/// A bucket as a source of its own.
struct Buckets(Sources);

#[async_trait::async_trait]
impl Source for Buckets {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        self.0.buckets().list(reference).await
    }
    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        self.0.buckets().check(remote).await
    }
    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        self.0.buckets().open(remote, range).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_contract_of_sources() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let content = noise(300_001, 11);
    let place: PathBuf = s3.on_disk("fleet", &blob(&content));
    larder::fsio::write_atomic(&place, &content, &larder::fsio::WriteOptions::default()).unwrap();
    let credentials = Credentials { key: KEY.to_owned(), secret: SECRET.to_owned(), session: None };
    let bucket = Place {
        name: "fleet".to_owned(),
        url: format!("s3://fleet/{FOLDER}").parse().unwrap(),
        endpoint: Some(s3.endpoint.parse().unwrap()),
        region: "us-east-1".to_owned(),
        path_style: true,
        credentials: Some(credentials),
        retry: RetryPolicy::default(),
    };
    assert!(!format!("{bucket:?}").contains(SECRET) && !format!("{bucket:?}").contains(KEY));
    let remote = |content: &[u8], size: usize| Remote {
        reference: Reference::Bucket { bucket: "fleet".to_owned(), content: ContentName::Sha256(Sha256::of(content)) },
        size: Some(size as u64),
        digests: Digests::default(),
    };
    let settings = SourceSettings { buckets: vec![bucket], ..SourceSettings::default() };
    suite(&Case {
        source: Box::new(Buckets(Sources::new(&settings).unwrap())),
        there: remote(&content, content.len()),
        missing: remote(b"missing", 7),
        busy: None,
        short: None,
        content,
    })
    .await;
}
