# What `adrec.__getattr__` offers, for type checkers and editors.
from adrec.api.model import Model as Model
from adrec.api.model import load as load
from adrec.api.stages import Result as Result
from adrec.api.stages import evaluate as evaluate
from adrec.api.stages import finetune as finetune
from adrec.api.stages import preprocess as preprocess
from adrec.errors import AdrecError as AdrecError

__version__: str
