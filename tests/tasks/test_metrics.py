import numpy as np

from hf_glmd.tasks.metrics import accuracy


def test_accuracy_is_the_share_of_equal_entries():
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
