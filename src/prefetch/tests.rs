use super::*;
use crate::image::OpenOptions;
use backends::cache::Store;
use backends::testing::{Lie, Origin};

#[test]
fn what_is_left_is_taken_step_by_step() {
    let mut left = VecDeque::new();
    left.push_back(0..u64::MAX);
    assert_eq!(take_step(&mut left), Some(0..STEP));
    assert_eq!((take_step(&mut left), left.len()), (Some(STEP..2 * STEP), 1));
    let mut left = VecDeque::from([5..7, 10..10 + STEP + 1]);
    let taken: Vec<_> = std::iter::from_fn(|| take_step(&mut left)).collect();
    assert_eq!(taken, [5..7, 10..10 + STEP, 10 + STEP..11 + STEP]);
}

#[test]
fn a_plan_nobody_asked_for_is_shortened() {
    let shortened = |most| {
        let mut plan = vec![0..10, 20..25];
        let more = shorten(&mut plan, most);
        (more, plan.into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>())
    };
    assert_eq!(shortened(15), (false, vec![(0, 10), (20, 25)]));
    assert_eq!(shortened(12), (true, vec![(0, 10), (20, 22)]));
    assert_eq!(shortened(10), (true, vec![(0, 10)]));
    assert_eq!(shortened(3), (true, vec![(0, 3)]));
}

fn options(store: &Store) -> OpenOptions {
    let image = formats::Options { format: Some(formats::Format::Raw), snapshot: None };
    OpenOptions { image, store: Some(store.clone()), ..OpenOptions::default() }
}

/// Requests are counted over a while in which each is answered.
async fn so_far(origin: &Origin) -> usize {
    tokio::time::sleep(Duration::from_millis(200)).await;
    origin.asked().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_begun_while_another_image_is_waited_for() {
    const SIZE: usize = 96 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let (here, there) =
        (Origin::start(vec![7; SIZE]).await.unwrap(), Origin::start(vec![8; SIZE]).await.unwrap());
    let open = async |origin: &Origin| {
        Arc::new(Image::open(&origin.url("disk").parse().unwrap(), &options(&store)).await.unwrap())
    };
    let (image, other) = (open(&here).await, open(&there).await);
    here.always(Lie::Late(Duration::from_millis(50)));
    let wishes = Wishes { whole: true, ..Wishes::default() };
    let background = Background::begin(image.clone(), wishes, backends::Options::default());
    while here.asked().len() < 10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // Somebody waits for a second, for another image. What is under way ends, and nothing follows it.
    there.always(Lie::Late(Duration::from_secs(1)));
    let read = tokio::spawn({
        let other = other.clone();
        async move { other.read(40 << 20, 4096).await.map(|_| ()) }
    });
    let before = so_far(&here).await;
    assert!(!read.is_finished() && before < SIZE >> 20, "{before} requests");
    assert_eq!((so_far(&here).await, so_far(&here).await), (before, before));
    read.await.unwrap().unwrap();
    assert!(so_far(&here).await > before, "it goes on");

    // He waits for a server that does not answer at all: not for long is that a reason.
    there.always(Lie::Freeze);
    let read = tokio::spawn(async move { other.read(80 << 20, 4096).await.map(|_| ()) });
    let began = Instant::now();
    while image.coverage().await.unwrap().local < SIZE as u64 {
        assert!(began.elapsed() < Duration::from_secs(30), "it stands still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!read.is_finished());
    read.abort();
    drop(background);
}
