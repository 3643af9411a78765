//! Geometry of lines and labels in the frame of a plot: clipping, thinning, placing labels without overlap.
//!
//! Invariant: results are finite and lie within the frame.

/// A position in the picture.
pub(super) type Point = (f64, f64);

/// A rectangle of the picture: left, top, width, height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Frame {
    pub(super) fn holds(&self, (x, y): Point) -> bool {
        const EDGE: f64 = 1e-6;
        (self.x - EDGE..=self.right() + EDGE).contains(&x)
            && (self.y - EDGE..=self.bottom() + EDGE).contains(&y)
    }

    pub(super) fn right(&self) -> f64 {
        self.x + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.y + self.height
    }

    pub(super) fn clamp(&self, (x, y): Point) -> Point {
        (x.clamp(self.x, self.right()), y.clamp(self.y, self.bottom()))
    }

    /// The part of a segment inside the frame (Liang and Barsky).
    fn cut(&self, from: Point, to: Point) -> Option<(Point, Point)> {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
        for (towards, room) in [
            (-dx, from.0 - self.x),
            (dx, self.right() - from.0),
            (-dy, from.1 - self.y),
            (dy, self.bottom() - from.1),
        ] {
            if towards == 0.0 && room < 0.0 {
                return None;
            }
            if towards < 0.0 {
                enter = enter.max(room / towards);
            } else if towards > 0.0 {
                leave = leave.min(room / towards);
            }
        }
        let along = |t: f64| self.clamp((from.0 + t * dx, from.1 + t * dy));
        (enter <= leave).then(|| (along(enter), along(leave)))
    }

    /// The parts of a line inside the frame, without points that are indistinguishable from their neighbours.
    pub(super) fn cut_line(&self, line: &[Point]) -> Vec<Vec<Point>> {
        let mut lines: Vec<Vec<Point>> = Vec::new();
        for pair in line.windows(2) {
            let Some((from, to)) = self.cut(pair[0], pair[1]) else { continue };
            match lines.last_mut() {
                Some(line) if line.last() == Some(&from) => line.push(to),
                _ => lines.push(vec![from, to]),
            }
        }
        lines.into_iter().map(|line| thinned(&line)).collect()
    }
}

fn thinned(line: &[Point]) -> Vec<Point> {
    const SEEN: f64 = 0.4;
    let mut kept: Vec<Point> = Vec::with_capacity(line.len());
    for (i, point) in line.iter().enumerate() {
        let far = |last: &Point| (point.0 - last.0).abs() > SEEN || (point.1 - last.1).abs() > SEEN;
        if kept.last().is_none_or(far) || i + 1 == line.len() {
            // Of collinear points along an axis only the ends are kept.
            if let [.., a, b] = kept[..]
                && ((a.0 == b.0 && b.0 == point.0) || (a.1 == b.1 && b.1 == point.1))
                && (b.0 - a.0) * (point.0 - b.0) + (b.1 - a.1) * (point.1 - b.1) >= 0.0
            {
                kept.pop();
            }
            kept.push(*point);
        }
    }
    kept
}

/// Splits points into runs at those without a position.
pub(super) fn runs(points: impl Iterator<Item = Option<Point>>) -> Vec<Vec<Point>> {
    let mut runs = vec![Vec::new()];
    for point in points {
        match point {
            Some(point) => runs.last_mut().expect("never empty").push(point),
            None => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

/// The corners of a step line through points: level until the next point, then up or down.
pub(super) fn stairs(points: &[Point]) -> Vec<Point> {
    let mut stairs: Vec<Point> = Vec::with_capacity(2 * points.len());
    for point in points {
        if let Some(last) = stairs.last().copied() {
            stairs.push((point.0, last.1));
        }
        stairs.push(*point);
    }
    stairs
}

/// Places intervals (wanted position, length) side by side within `from..to`; returns their starts.
pub(super) fn apart(wanted: &[(f64, f64)], from: f64, to: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].0.total_cmp(&wanted[*b].0));
    let mut places = vec![0.0; wanted.len()];
    let mut free = from;
    for &i in &order {
        places[i] = (wanted[i].0 - wanted[i].1 / 2.0).max(free);
        free = places[i] + wanted[i].1;
    }
    let mut limit = to;
    for &i in order.iter().rev() {
        places[i] = places[i].min(limit - wanted[i].1);
        limit = places[i];
    }
    places
}

/// The position around `at` where a label of this size covers least of `lines` and of `others`.
pub(super) fn beside(
    at: Point,
    size: (f64, f64),
    frame: &Frame,
    lines: &[Vec<Point>],
    others: &[Frame],
) -> Frame {
    const GAP: f64 = 9.0;
    let (width, height) = size;
    let (x, y) = at;
    // Candidates: beside, above and below the point, then further away, where there may be more room.
    let around = |far: f64| {
        let (right, left) = (x + far, x - far - width);
        let (above, below) = (y - far - height, y + far);
        let (middle, centre) = (y - height / 2.0, x - width / 2.0);
        [
            (right, middle),
            (left, middle),
            (centre, above),
            (centre, below),
            (right, above),
            (right, below),
            (left, above),
            (left, below),
        ]
    };
    let covered = |label: &Frame| {
        let grown = Frame { x: label.x - 3.0, y: label.y - 2.0, width: width + 6.0, height: height + 4.0 };
        let crossed = |line: &Vec<Point>| line.windows(2).filter(|s| grown.cut(s[0], s[1]).is_some()).count();
        let overlaps = |o: &&Frame| {
            grown.x < o.right() && o.x < grown.right() && grown.y < o.bottom() && o.y < grown.bottom()
        };
        let outside = [(label.x, label.y), (label.right(), label.bottom())].iter().any(|c| !frame.holds(*c));
        lines.iter().map(crossed).sum::<usize>()
            + 50 * others.iter().filter(overlaps).count()
            + if outside { 1000 } else { 0 }
    };
    let candidates = [1.0, 2.5, 5.0].into_iter().flat_map(|steps| around(steps * GAP));
    let frames = candidates.map(|(x, y)| Frame { x, y, width, height });
    let best = frames.min_by_key(covered).expect("there are candidates");
    let x = best.x.clamp(frame.x, (frame.right() - width).max(frame.x));
    let y = best.y.clamp(frame.y, (frame.bottom() - height).max(frame.y));
    Frame { x, y, ..best }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: Frame = Frame { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };

    #[test]
    fn lines_end_at_the_frame() {
        let through = FRAME.cut_line(&[(-5.0, 5.0), (5.0, 5.0), (5.0, 15.0), (8.0, 15.0), (8.0, 5.0)]);
        assert_eq!(through, [vec![(0.0, 5.0), (5.0, 5.0), (5.0, 10.0)], vec![(8.0, 10.0), (8.0, 5.0)]]);
        assert!(FRAME.cut_line(&[(-5.0, -1.0), (20.0, -1.0)]).is_empty());
    }

    #[test]
    fn what_cannot_be_told_apart_is_drawn_once() {
        let line: Vec<Point> = (0..=1000).map(|i| (f64::from(i) / 100.0, 3.0)).collect();
        assert_eq!(thinned(&line), [(0.0, 3.0), (10.0, 3.0)]);
        // There and back again is not a straight line.
        let turned = [(0.0, 3.0), (8.0, 3.0), (2.0, 3.0)];
        assert_eq!(thinned(&turned), turned);
    }

    #[test]
    fn labels_are_kept_apart() {
        assert_eq!(apart(&[(5.0, 4.0), (5.0, 4.0), (5.5, 4.0)], 0.0, 100.0), [3.0, 7.0, 11.0]);
        assert_eq!(apart(&[(9.0, 4.0), (9.5, 4.0)], 0.0, 10.0), [2.0, 6.0]);
        let line = vec![vec![(0.0, 50.0), (50.0, 50.0), (100.0, 50.0)]];
        let frame = Frame { x: 0.0, y: 0.0, width: 100.0, height: 100.0 };
        let label = beside((50.0, 50.0), (20.0, 10.0), &frame, &line, &[]);
        assert!(label.bottom() < 50.0 || label.y > 50.0, "{label:?}");
    }

    proptest! {
        #[test]
        fn cut_lines_stay_within(points in prop::collection::vec((-30.0_f64..30.0, -30.0_f64..30.0), 0..20)) {
            for line in FRAME.cut_line(&points) {
                prop_assert!(line.iter().all(|p| FRAME.holds(*p)), "{line:?}");
            }
        }
    }
}
