//! The questions that clients of Xet ask a `larder serve`, asked by hand.

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::machine::Serving;

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Asks, with these headers.
pub(crate) fn get(url: &str, headers: &[(&'static str, &str)]) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let header =
        |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).headers(headers.iter().map(header).collect()).send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        Answer { status, headers, body: answer.bytes().await.unwrap().to_vec() }
    })
}

/// Bytes of content that the server counted.
pub(crate) fn sent_bytes(serving: &Serving) -> u64 {
    let metrics = get(&format!("{}/metrics", serving.url()), &[]).body;
    let metrics = String::from_utf8(metrics).unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("larder_serve_sent_bytes_total "));
    line.unwrap().parse().unwrap()
}

/// A pass from the hub's face, for who has the token.
pub(crate) fn pass(serving: &Serving, token: &str) -> String {
    let asked = format!("{}/api/models/acme/lab/xet-read-token/main", serving.url());
    let answer = get(&asked, &[("authorization", &format!("Bearer {token}"))]);
    let told = answer.json();
    assert_eq!(told["casUrl"], format!("{}/api/xet", serving.url()));
    assert_eq!(answer.header("x-xet-cas-url"), told["casUrl"]);
    assert_eq!(answer.header("x-xet-access-token"), told["accessToken"]);
    assert_eq!(answer.header("x-xet-token-expiration"), told["exp"].to_string());
    assert_eq!(answer.header("cache-control"), "no-store");
    told["accessToken"].as_str().unwrap().to_owned()
}

/// Where the content with this name lies, for who has the pass.
pub(crate) fn question(serving: &Serving, version: u8, name: &str) -> String {
    format!("{}/api/xet/v{version}/reconstructions/{name}", serving.url())
}

/// The one link of an answer to the newer question.
pub(crate) fn link(told: &Value) -> String {
    let places = told["xorbs"].as_object().unwrap().values().next().unwrap();
    places[0]["url"].as_str().unwrap().to_owned()
}

/// What a client puts together that reads as the answer says, in either manner.
pub(crate) fn put_together(told: &Value, wanted: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for term in told["terms"].as_array().unwrap() {
        let hash = term["hash"].as_str().unwrap();
        let (url, span) = match &told["xorbs"] {
            Value::Null => {
                let places = told["fetch_info"][hash].as_array().unwrap();
                let place = places.iter().find(|place| place["range"] == term["range"]).unwrap();
                (&place["url"], &place["url_range"])
            }
            xorbs => {
                let is_it = |place: &&Value| place["ranges"][0]["chunks"] == term["range"];
                let place = xorbs[hash].as_array().unwrap().iter().find(is_it).unwrap();
                assert_eq!(place["ranges"].as_array().unwrap().len(), 1, "no client has to ask for two parts at once");
                (&place["url"], &place["ranges"][0]["bytes"])
            }
        };
        let part = get(url.as_str().unwrap(), &[("range", &format!("bytes={}-{}", span["start"], span["end"]))]);
        assert_eq!(part.status, 206);
        let before = bytes.len();
        let chunks = unpack(&part.body, &mut bytes);
        assert_eq!(chunks, term["range"]["end"].as_u64().unwrap() - term["range"]["start"].as_u64().unwrap());
        assert_eq!((bytes.len() - before) as u64, term["unpacked_length"].as_u64().unwrap());
    }
    let offset = told["offset_into_first_range"].as_u64().unwrap() as usize;
    bytes[offset..offset + wanted].to_vec()
}

/// Appends what the chunks hold, and counts them.
fn unpack(mut chunks: &[u8], bytes: &mut Vec<u8>) -> u64 {
    let mut count = 0;
    while let [0, a, b, c, 0, d, e, f, rest @ ..] = chunks {
        assert_eq!([a, b, c], [d, e, f], "nothing is compressed");
        let len = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        assert!(len <= 128 << 10);
        bytes.extend_from_slice(&rest[..len]);
        chunks = &rest[len..];
        count += 1;
    }
    assert_eq!(chunks, [0; 0], "whole chunks and nothing else");
    count
}

/// [`get`] where a runtime is already running.
pub(crate) fn get_aside(url: String) -> Answer {
    std::thread::spawn(move || get(&url, &[])).join().unwrap()
}
