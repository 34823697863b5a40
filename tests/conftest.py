"""Settings for all tests."""

import torch

# The tensors of the tests are small: a second thread costs more than it brings, and far more where
# other processes are busy.
torch.set_num_threads(1)
