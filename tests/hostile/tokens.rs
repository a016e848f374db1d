//! The token goes to the hub and nowhere else, wherever the hub sends larder.

use rstest::rstest;

use crate::bench::{Bench, Kind, Phase, phase};
use crate::hostile::Answer;

const TOKEN: [(&str, &str); 1] = [("HF_TOKEN", "hf_secretsecretsecret")];

/// Applies with a token while content and checks are redirected `to`, where `PORT` is the server's.
fn redirected(to: &str) -> (Bench, crate::machine::Said) {
    let bench = Bench::with(Kind::Hub, "");
    bench.machine.larder_with(&TOKEN, &["lock"]).must_be(0);
    let to = to.replace("PORT", &bench.server.port.to_string());
    bench.misbehave(move |asked| matches!(phase(asked), Phase::Check | Phase::Content).then(|| Answer::redirect(&to)));
    let said = bench.machine.larder_with(&TOKEN, &["apply", "--yes"]);
    assert!(!format!("{said}").contains("hf_secret"), "{said}");
    (bench, said)
}

#[rstest]
#[case::another_host("http://localhost:PORT/elsewhere/weights.bin?signature=1")]
#[case::without_scheme("//localhost:PORT/elsewhere/weights.bin?signature=1")]
#[case::the_same_host_in_other_words("http://127.1:PORT/elsewhere/weights.bin")]
fn elsewhere_nobody_sees_the_token(#[case] to: &str) {
    let (bench, said) = redirected(to);
    let served = bench.server.served();
    let elsewhere = served.iter().filter(|served| phase(&served.asked) == Phase::Elsewhere);
    let is_at_home = to.contains("127.1");
    for served in elsewhere {
        // An address is written in many ways, and is one host in all of them.
        assert_eq!(served.asked.header("authorization").is_some(), is_at_home, "{served:?}");
        assert!(served.asked.header("cookie").is_none() && served.asked.header("referer").is_none(), "{served:?}");
    }
    said.must_be(0);
    assert!(bench.has_it());
    let home = served.iter().filter(|served| phase(&served.asked) != Phase::Elsewhere);
    assert!(home.clone().count() > 0 && home.into_iter().all(|served| served.asked.header("authorization").is_some()));
}

#[test]
fn names_in_an_address_are_not_followed() {
    let (bench, said) = redirected("http://127.0.0.1:PORT@localhost:PORT/elsewhere/weights.bin");
    assert!(!bench.has_it(), "{said}");
    assert!(bench.server.served().iter().all(|served| phase(&served.asked) != Phase::Elsewhere));
}

#[test]
fn the_api_is_not_asked_elsewhere() {
    let bench = Bench::new(Kind::Hub);
    let to = format!("http://localhost:{}/elsewhere/api", bench.server.port);
    bench.misbehave(move |asked| (phase(asked) == Phase::Listing).then(|| Answer::redirect(&to)));
    let said = bench.machine.larder_with(&TOKEN, &["lock"]).must_be(4);
    assert!(said.out.contains("its API leads to another server"), "{said}");
    assert_eq!(bench.server.served().len(), 1);
}

#[test]
fn a_registry_cannot_send_for_a_token_elsewhere() {
    let bench = Bench::new(Kind::Ollama);
    let realm = format!("Bearer realm=\"http://localhost:{}/elsewhere/token\"", bench.server.port);
    bench.misbehave(move |asked| {
        (phase(asked) == Phase::Listing).then(|| Answer::new(401, &[("WWW-Authenticate", &realm)], b""))
    });
    bench.machine.larder(&["lock"]).must_be(4);
    assert_eq!(bench.server.served().len(), 1);
}

/// A registry whose host may have one connection only hands out its token over the same one.
#[test]
fn a_token_of_the_registrys_own_host_needs_no_second_connection() {
    let bench = Bench::with(Kind::Ollama, "connections = 1");
    let realm = format!("Bearer realm=\"http://127.0.0.1:{}/token\"", bench.server.port);
    bench.misbehave(move |asked| {
        if asked.path() == "/token" {
            return Some(Answer::new(200, &[], b"{\"token\":\"t\"}"));
        }
        asked.header("authorization").is_none().then(|| Answer::new(401, &[("WWW-Authenticate", &realm)], b""))
    });
    bench.machine.larder(&["lock"]).must_be(0);
    bench.apply().must_be(0);
    assert!(bench.has_it());
    assert_eq!(bench.server.most_open(), 1);
}
