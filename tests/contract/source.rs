//! What every source promises, whatever its kind.

use futures_util::StreamExt;
use larder::artifact::Remote;
use larder::sources::{Body, ByteRange, Source, SourceError};

/// A source, and what can be asked of it. Each remote is asked anew in every check.
pub(crate) struct Case {
    /// The source.
    pub(crate) source: Box<dyn Source>,
    /// A file that is there, with its length; at least 1000 bytes.
    pub(crate) there: Remote,
    /// Its content.
    pub(crate) content: Vec<u8>,
    /// A file that is not there.
    pub(crate) missing: Remote,
    /// The same content, but its server is always busy (503). `None` where there is no server.
    pub(crate) busy: Option<Remote>,
    /// The same content, but it always breaks off early. `None` where that cannot be arranged.
    pub(crate) short: Option<Remote>,
}

/// Runs every check.
pub(crate) async fn suite(case: &Case) {
    assert!(case.content.len() >= 1000, "the ranges below need a longer file");
    may_be_read(case).await;
    whole_file(case).await;
    ranges(case).await;
    a_resumed_file_joins(case).await;
    the_end_and_beyond(case).await;
    another_length_is_a_change(case).await;
    missing_is_permanent(case).await;
    busy_is_not_permanent(case).await;
    short_is_cut_short(case).await;
}

/// Reads a body to its end: what came, and what ended it.
pub(crate) async fn read(body: Body) -> (Vec<u8>, Result<(), SourceError>) {
    let (mut bytes, mut stream) = (Vec::new(), body.stream);
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error ends the stream");
                return (bytes, Err(error));
            }
        }
    }
    (bytes, Ok(()))
}

/// The bytes that were asked for: a body may begin earlier.
async fn get(case: &Case, start: u64, end: Option<u64>) -> Vec<u8> {
    let body = case.source.open(&case.there, ByteRange { start, end }).await.unwrap();
    assert!(body.start <= start, "a body never begins later than asked");
    if let Some(total) = body.total {
        assert_eq!(total, case.content.len() as u64);
    }
    let skip = (start - body.start) as usize;
    let (bytes, end) = read(body).await;
    end.unwrap();
    bytes[skip..].to_vec()
}

async fn may_be_read(case: &Case) {
    case.source.check(&case.there).await.unwrap();
}

async fn whole_file(case: &Case) {
    assert_eq!(get(case, 0, None).await, case.content);
}

async fn ranges(case: &Case) {
    for (start, end) in [(0, 1), (0, 500), (1, 2), (500, 1000), (999, 1000), (7, 7)] {
        assert_eq!(get(case, start, Some(end)).await, case.content[start as usize..end as usize], "{start}..{end}");
    }
}

async fn a_resumed_file_joins(case: &Case) {
    for cut in [1, case.content.len() / 2, case.content.len() - 1] {
        let mut joined = get(case, 0, Some(cut as u64)).await;
        joined.extend(get(case, cut as u64, None).await);
        assert_eq!(joined, case.content, "cut at {cut}");
    }
}

async fn the_end_and_beyond(case: &Case) {
    let size = case.content.len() as u64;
    assert_eq!(get(case, size - 10, Some(size + 1000)).await, case.content[case.content.len() - 10..]);
    assert_eq!(get(case, size, None).await, b"", "a complete file has nothing left to send");
    let error = case.source.open(&case.there, ByteRange::from(size + 1)).await.unwrap_err();
    assert!(error.is_permanent(), "{error}");
}

async fn another_length_is_a_change(case: &Case) {
    let locked = Remote { size: Some(case.content.len() as u64 + 5), ..case.there.clone() };
    let error = match case.source.open(&locked, ByteRange::default()).await {
        Ok(body) => read(body).await.1.unwrap_err(),
        Err(error) => error,
    };
    let actual = case.content.len() as u64;
    assert!(
        matches!(error, SourceError::Changed { expected, actual: a, .. } if a == actual && expected == actual + 5),
        "{error}"
    );
    let error = case.source.check(&locked).await.unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
}

async fn missing_is_permanent(case: &Case) {
    for error in [
        case.source.check(&case.missing).await.unwrap_err(),
        case.source.open(&case.missing, ByteRange::default()).await.unwrap_err(),
        case.source.open(&case.missing, ByteRange::from(10)).await.unwrap_err(),
    ] {
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
        assert!(error.is_permanent());
    }
}

async fn busy_is_not_permanent(case: &Case) {
    let Some(busy) = &case.busy else { return };
    for error in
        [case.source.check(busy).await.unwrap_err(), case.source.open(busy, ByteRange::default()).await.unwrap_err()]
    {
        assert!(matches!(error, SourceError::Status { status: 503, .. }), "{error}");
        assert!(!error.is_permanent());
    }
}

pub(crate) async fn short_is_cut_short(case: &Case) {
    let Some(short) = &case.short else { return };
    let (bytes, end) = read(case.source.open(short, ByteRange::default()).await.unwrap()).await;
    let error = end.unwrap_err();
    let size = case.content.len() as u64;
    assert!(
        matches!(error, SourceError::CutShort { expected, got, .. } if expected == size && got == bytes.len() as u64),
        "{error}"
    );
    assert!(!bytes.is_empty() && case.content.starts_with(&bytes), "what came before the break is good");
    assert!(!error.is_permanent());
}
