"""What joins the found face and the known pixels. Knows nothing of TensorFlow."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


def poisson(image, generated, mask):
    """Fill the hole of `image` with the gradients of `generated`, so that no seam shows (Perez et al. 2003).

    Both are float (H, W, C). Inside the hole the result has, as nearly as it can (least squares), the differences
    between neighbours that `generated` has; known pixels stay as they are, and what `image` holds under the hole is
    not read. Where nothing is known the result is `generated`.
    """
    hidden = mask[..., 0] == 0
    if hidden.all() or not hidden.any():
        return generated.copy() if hidden.all() else image.copy()
    index = np.full(hidden.shape, -1)
    index[hidden] = np.arange(hidden.sum())
    result = np.where(hidden[..., None], generated, image).astype(np.float64)
    generated = generated.astype(np.float64)
    # one row for each pair of neighbours, p and q, of which at least one is hidden
    rows, columns, values, differences = [], [], [], []
    count = 0
    for p, q in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        pair = hidden[p] | hidden[q]
        difference = (generated[p] - generated[q])[pair]
        number = count + np.arange(pair.sum())
        count += pair.sum()
        for side, sign in ((p, 1.0), (q, -1.0)):
            inside = hidden[side][pair]
            rows.append(number[inside])
            columns.append(index[side][pair][inside])
            values.append(np.full(inside.sum(), sign))
            difference[~inside] -= sign * result[side][pair][~inside]
        differences.append(difference)
    shape = count, int(hidden.sum())
    gradient = scipy.sparse.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape
    )
    target = gradient.T @ np.concatenate(differences)
    result[hidden] = scipy.sparse.linalg.splu((gradient.T @ gradient).tocsc()).solve(target)
    return result.astype(np.float32)
