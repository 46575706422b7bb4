"""ImageGPT as whole systems: a palette and a transformer over its pixels. Imports no torch.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020; V2 of the text, cdn.openai.com
"""

from zoo.parts import Ref
from zoo.systems import Autoregressive


def _system(name: str, palette: str, size: int) -> Autoregressive:
    return Autoregressive(image_size=size, codebook=Ref(palette, "codebook"), prior=Ref(f"{name}-prior", "prior"))


def imagegpt() -> Autoregressive:
    """Laptop size: trains on the embedded data in minutes on two CPU cores."""
    return _system("imagegpt", "palette", 32)


def imagegpt_bert() -> Autoregressive:
    """Laptop size, trained on masked codes: for features, not for pictures."""
    return _system("imagegpt-bert", "palette", 32)


def imagegpt_tiny() -> Autoregressive:
    """For tests."""
    return Autoregressive(
        image_size=16, codebook=Ref("palette-tiny", "codebook"), prior=Ref("imagegpt-prior-tiny", "prior")
    )


def imagegpt_s() -> Autoregressive:
    """iGPT-S [1] section 3.3: 32 px, 512 colours."""
    return _system("imagegpt-s", "palette-512", 32)


def imagegpt_m() -> Autoregressive:
    """iGPT-M [1] section 3.3."""
    return _system("imagegpt-m", "palette-512", 32)


def imagegpt_l() -> Autoregressive:
    """iGPT-L [1] section 3.3."""
    return _system("imagegpt-l", "palette-512", 32)


def imagegpt_l_48() -> Autoregressive:
    """iGPT-L at 48 px [1] table 2."""
    return _system("imagegpt-l-48", "palette-512", 48)


def imagegpt_xl() -> Autoregressive:
    """iGPT-XL at 32 px, the size whose parameters the paper prints."""
    return _system("imagegpt-xl", "palette-512", 32)


def imagegpt_xl_64() -> Autoregressive:
    """iGPT-XL at 64 px, as it was trained [1] table 2."""
    return _system("imagegpt-xl-64", "palette-512", 64)


def imagegpt_s_bert() -> Autoregressive:
    """iGPT-S trained on masked codes [1] section 4.5."""
    return _system("imagegpt-s-bert", "palette-512", 32)


def imagegpt_m_bert() -> Autoregressive:
    """iGPT-M trained on masked codes [1] section 4.5."""
    return _system("imagegpt-m-bert", "palette-512", 32)


def imagegpt_l_bert() -> Autoregressive:
    """iGPT-L trained on masked codes [1] section 4.5."""
    return _system("imagegpt-l-bert", "palette-512", 32)
