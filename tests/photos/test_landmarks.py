"""The landmarks of faces that are partly hidden."""

import dlib
import numpy as np
import pytest
import skimage.data

import utils
from completion import prior
from photos import detection, geometry, landmarks, occlusion

SIZE = 64
EYE = np.arange(36, 42)
POINTS = 200 * geometry.MINMAX_TEMPLATE @ [[0.9, 0.3], [-0.3, 0.9]] + [90, 40]  # a face in a photo of 400 pixels


def hide(points, which, reach=2):
    """A mask (400, 400) of what lies near some of the points."""
    y, x = np.indices((400, 400))
    return np.any([np.hypot(x - left, y - top) < reach for left, top in points[which]], axis=0)


def test_each_landmark_has_a_counterpart():
    np.testing.assert_array_equal(landmarks.MIRRORED[landmarks.MIRRORED], np.arange(68))
    others = geometry.MINMAX_TEMPLATE[landmarks.MIRRORED] * [-1, 1] + [1, 0]
    assert np.abs(others - geometry.MINMAX_TEMPLATE).max() < 0.06  # no face is quite symmetric


def test_hidden_landmarks_are_the_conditional_mean_given_the_others():
    rng, mean = np.random.default_rng(0), geometry.MINMAX_TEMPLATE.astype(np.float64)
    components, variances = np.linalg.qr(rng.normal(size=(136, 3)))[0], np.array([0.05, 0.03, 0.02])
    model = prior.ProbabilisticPCA(mean.ravel(), components, variances, 1e-4)
    points = POINTS + rng.normal(size=(68, 2))
    hidden = hide(points, EYE)
    seen = np.delete(np.arange(68), EYE)
    x, y = points[seen].T  # the similarity to the mean, by least squares: u = a x - b y + c, v = b x + a y + d
    zeros, ones = np.zeros_like(x), np.ones_like(x)
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, *shift = np.linalg.lstsq(rows, mean[seen].T.ravel(), rcond=None)[0]
    frame = points @ [[a, b], [-b, a]] + shift
    covariance = components * variances @ components.T
    rest, noise = np.repeat(np.isin(np.arange(68), seen), 2), 1e-4 + landmarks.READING**2
    gain = covariance[~rest][:, rest] @ np.linalg.inv(covariance[rest][:, rest] + noise * np.eye(rest.sum()))
    wanted = mean[EYE].ravel() + gain @ (frame - mean).ravel()[rest]
    wanted = (wanted.reshape(6, 2) - shift) @ np.linalg.inv([[a, b], [-b, a]])
    found = landmarks.infer(points, hidden, model)
    np.testing.assert_allclose(found[EYE], wanted, atol=1e-6)
    np.testing.assert_allclose(found[seen], points[seen], atol=1e-9)
    np.testing.assert_array_equal(landmarks.infer(points, hidden & False, model), points)
    np.testing.assert_array_equal(landmarks.infer(points, hidden | True, model), points)


def test_the_shipped_model_knows_where_an_eye_is():
    away = POINTS.copy()
    away[EYE] += [25, -15]
    found = landmarks.infer(away, hide(away, EYE, 12))
    width = np.linalg.norm(POINTS[36] - POINTS[45])
    assert np.linalg.norm(found - POINTS, axis=1).max() < 0.06 * width
    others = away.copy()
    others[EYE] += [1, 2]  # where hidden ones were read does not matter
    np.testing.assert_allclose(landmarks.infer(others, hide(away, EYE, 12)), found, atol=1e-9)


def test_a_small_part_of_a_face_does_not_tell_of_the_rest():
    np.testing.assert_array_equal(landmarks.infer(POINTS, ~hide(POINTS, np.arange(48, 68), 4)), POINTS)


def test_landmarks_beyond_the_border_count_as_hidden():
    cut = POINTS - [100, 0]
    beyond = cut[:, 0] < -0.5
    assert 3 < beyond.sum() < 12
    misread = np.where(beyond[:, None], np.minimum(cut + [30, 0], [-1, 400]), cut)
    found = landmarks.infer(misread, np.zeros((400, 400), bool))
    np.testing.assert_allclose(found[~beyond], cut[~beyond], atol=1e-9)
    width = np.linalg.norm(POINTS[36] - POINTS[45])
    assert np.linalg.norm(found - cut, axis=1).max() < 0.2 * width


def test_those_readings_count_that_look_like_a_face(monkeypatch):
    readings = [(3.0, 0), (2.9, 1), (2.1, 4), (1.9, 300), (0.2, 500), None]  # the score, and how far it is off
    detector = detection.FaceDetector(None, None, prior="a prior")
    monkeypatch.setattr(detection.FaceDetector, "find_landmarks", lambda *_: POINTS)
    hidden = hide(POINTS, EYE, 8)

    def refine(photo, hidden, points, width, detector):
        reading = readings.pop(0)
        return reading and (points_in_part + reading[1], reading[0])

    x, y = POINTS[EYE].mean(0).astype(int).tolist()
    points_in_part = POINTS - [max(0, x - 91), max(0, y - 91)]
    box = dlib.rectangle(x - 30, y - 30, x + 30, y + 30)
    monkeypatch.setattr(occlusion, "refine", refine)
    several = [occlusion.Detection("grey", np.zeros((400, 400, 3), np.uint8), box)] * 2
    found = occlusion.landmarks_under(hidden, several, detector)
    median = POINTS + 1
    wanted = median + 0.75 * (landmarks.infer(median, hidden) - median)
    assert np.abs(wanted - median)[EYE].min() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not readings


def test_a_fitted_model_is_of_faces_and_their_mirror_images(tmp_path):
    rng = np.random.default_rng(0)
    shapes = geometry.MINMAX_TEMPLATE + 0.02 * rng.normal(size=(50, 68, 2))
    shapes[:, EYE, 1] += 0.1 * rng.normal(size=(50, 1))  # one eye's height, and the brow's with it
    shapes[:, 17:22, 1] += shapes[:, 36:37, 1]
    model = landmarks.fit(shapes)
    mean = model.mean.reshape(68, 2)
    np.testing.assert_allclose(mean[landmarks.MIRRORED] * [-1, 1], mean, atol=0.03)
    assert model.components.shape == (136, landmarks.COMPONENTS)
    landmarks.write(model, tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as kept:
        for name, value in model._asdict().items():
            np.testing.assert_allclose(kept[name], value, rtol=1e-6)


def test_the_landmarks_of_a_folder_lie_where_crops_have_them(tmp_path):
    detector, portrait = detection.FaceDetector.load(), skimage.data.astronaut()[:300, 80:380]
    points = detector.find_landmarks(portrait, detector.find_faces(portrait)[0])
    utils.write_image(tmp_path / "face.png", geometry.warp(portrait, geometry.affine(points, 128), 128))
    (found,) = landmarks.of_faces(tmp_path, 5)
    three = geometry.LANDMARKS["innerEyesAndBottomLip"]
    np.testing.assert_allclose(found[three], geometry.MINMAX_TEMPLATE[three], atol=0.03)


@pytest.mark.parametrize("turns", [0, 1])
def test_landmarks_are_read_in_an_upright_picture(turns):
    detector, portrait = detection.FaceDetector.load(), skimage.data.astronaut()[:300, 80:380]
    (box,) = detector.find_faces(portrait)
    points = np.float32([(point.x, point.y) for point in detector.predictor(portrait, box).parts()])
    turn = [*geometry.turn_matrix(90 * turns, portrait.shape[:2])[0], [0, 0, 1]]
    matrix = (np.array([*geometry.affine(points, SIZE), [0, 0, 1]]) @ np.linalg.inv(turn))[:2]
    photo, known = np.rot90(portrait, turns), np.ones((300, 300), bool)
    arguments = photo, known, np.zeros((SIZE, SIZE, 3), np.uint8), matrix, detection.installed_predictor()
    found = landmarks.find(*arguments)
    wanted = (points @ np.array(turn)[:2, :2].T) + np.array(turn)[:2, 2]
    eyes = np.linalg.norm(points[36] - points[45])
    assert np.linalg.norm(found - wanted, axis=1).mean() < 0.05 * eyes
