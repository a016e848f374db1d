//! The LAN server: read-only, over what lies in this machine's stores.
//!
//! One router with three faces: the Hugging Face hub's API (`HF_ENDPOINT=http://HOST:PORT`) with the store behind
//! it that its clients read large files from, the Ollama registry's API (`ollama pull --insecure
//! HOST:PORT/library/qwen3:4b`), and larder's own: files by artifact and path, content and chunk digests by digest,
//! what there is, and the lock.
//!
//! What can be asked for is decided by an [`Index`] that the caller makes. A name in a request is looked
//! up there and nowhere else: no part of a request ever becomes a path on the disk.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;

use crate::artifact::Artifact;
use crate::facts::Facts;

mod account;
mod answer;
mod bounds;
mod bring;
mod catalog;
mod content;
mod guests;
mod hub;
mod listen;
mod listing;
mod metrics;
mod patience;
mod plain;
mod range;
mod rates;
mod registry;
mod route;
mod shelf;
mod spare;
mod tls;
mod xet;

pub use bring::Supply;
pub use guests::{Guests, Token};
pub use listen::{Limits, ServeError, Server, answer_at, answer_on};
pub use metrics::Traffic;
pub use rates::Rates;
pub use shelf::{Renewal, Renewed, Shelf};
pub use tls::{Tls, TlsError};
pub use xet::Seal;

use account::Account;
use answer::{empty, json};
use bring::Bringing;
use catalog::Catalog;
use metrics::Face;
use rates::Paces;
use route::Route;
use shelf::Stock;

/// What the server may hand out.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// The artifacts. Where two of them claim the same name, the first one has it.
    pub artifacts: Vec<Served>,
    /// The text of the lock, for other larders.
    pub lock: Option<String>,
    /// Where chunk digests are looked up, for other larders.
    pub facts: Option<Arc<Facts>>,
    /// The folders that content may lie in, such as those of the stores. What lies elsewhere, or is a link to there,
    /// is not handed out.
    pub within: Vec<PathBuf>,
}

/// One artifact and where its content lies.
#[derive(Debug, Clone)]
pub struct Served {
    /// The artifact, as locked.
    pub artifact: Artifact,
    /// Where the bytes of the file with the same number are; `None` for one that is not here.
    pub content: Vec<Option<PathBuf>>,
}

/// To whom the server hands things out, and within what.
#[derive(Clone, Default)]
pub struct Terms {
    /// Who may ask.
    pub guests: Guests,
    /// How fast contents go out.
    pub rates: Rates,
    /// What passes and links are sealed with, together with the guests' token.
    pub seal: Seal,
}

impl From<Guests> for Terms {
    fn from(guests: Guests) -> Self {
        Self { guests, ..Self::default() }
    }
}

/// What all answers have in common.
#[derive(Clone)]
struct House {
    shelf: Shelf,
    guests: Arc<Guests>,
    paces: Arc<Paces>,
    bringing: Arc<Bringing>,
    seal: Arc<Seal>,
    traffic: Arc<Traffic>,
}

/// What one answer needs: what there is does not change while it is made.
struct Site {
    catalog: Arc<Catalog>,
    supply: Option<Arc<dyn Supply>>,
    paces: Arc<Paces>,
    bringing: Arc<Bringing>,
    seal: Arc<Seal>,
    traffic: Arc<Traffic>,
}

impl House {
    async fn site(&self) -> Site {
        let Stock { catalog, supply } = self.shelf.stock().await;
        let House { paces, bringing, seal, traffic, .. } = self.clone();
        Site { catalog, supply, paces, bringing, seal, traffic }
    }
}

/// The three faces over what is on `shelf`, such as an [`Index`], on `terms` such as [`Guests`]. Counts in `traffic`,
/// which tests and progress displays may read.
///
/// Looks at the sizes of files whose size the index does not know, once.
pub fn router(shelf: impl Into<Shelf>, terms: impl Into<Terms>, traffic: Arc<Traffic>) -> Router {
    let terms = terms.into();
    let seal = terms.guests.token.map_or_else(|| terms.seal.clone(), |token| terms.seal.bound_to(token.digest()));
    let house = House {
        shelf: shelf.into(),
        guests: Arc::new(terms.guests),
        paces: Arc::new(Paces::new(terms.rates)),
        bringing: Arc::default(),
        seal: Arc::new(seal),
        traffic,
    };
    Router::new().fallback(answer_request).with_state(house)
}

async fn answer_request(State(house): State<House>, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let route = Route::parse(request.uri().path());
    let (method, face) = (request.method().clone(), route.face());
    let account = Account {
        peer: peer.map(|peer| peer.to_string()).unwrap_or_default(),
        method: method.clone(),
        path: request.uri().path().to_owned(),
        face,
        begun: Instant::now(),
        status: StatusCode::INTERNAL_SERVER_ERROR,
        bytes: 0,
        is_told: false,
        traffic: Arc::clone(&house.traffic),
    };
    let is_vouched_for = matches!(&route, Route::Xet(ask) if xet::vouches(&house.seal, ask, request.headers()));
    let response = match house.guests.admit(peer.map(|peer| peer.ip()), request.headers(), is_vouched_for) {
        Ok(()) => dispatch(&house.site().await, route, request).await,
        Err(refusal) => *refusal,
    };
    let response = if face == Face::Registry { registry::in_its_words(response) } else { response };
    account.over(if method == Method::HEAD { head_only(response) } else { response })
}

/// The answer to GET without its content, but with the content's length.
fn head_only(mut response: Response) -> Response {
    if let Some(len) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(len));
    }
    response.map(|_| Body::empty())
}

async fn dispatch(site: &Site, route: Route, request: Request) -> Response {
    let (request, body) = request.into_parts();
    let request = &request;
    if !route.allows(&request.method) {
        return answer::method_not_allowed(route.methods());
    }
    match route {
        Route::Hub(asked) => hub::answer(site, asked, request, body).await,
        Route::Xet(ask) => xet::answer(site, &ask, request).await,
        Route::WhoAmI => hub::nobody(),
        Route::RegistryVersion => registry::version(),
        Route::RegistryCatalog => registry::list_repositories(site, &request.uri),
        Route::Registry { repository, item } => registry::answer(site, &repository, &item, request).await,
        Route::File { artifact, path } => plain::file(site, &artifact, &path, request).await,
        Route::Blob { content } => plain::blob(site, &content, request).await,
        Route::Have => json(StatusCode::OK, &plain::have(site)),
        Route::Bring { content } => bring::answer(site, &content).await,
        Route::Home => json(StatusCode::OK, &plain::home(&site.catalog)),
        Route::Lock => plain::lock(&site.catalog),
        Route::Chunks { digest } => plain::chunks(site, &digest).await,
        Route::Metrics => answer::typed(StatusCode::OK, metrics::MEDIA_TYPE, site.traffic.to_prometheus()),
        Route::Nothing { .. } => empty(StatusCode::NOT_FOUND),
    }
}
