"""The named family: each class is a choice of strategies for :class:`~lit_metarl.algorithms.MetaPolicyGradient`.

Every argument can still be given; the classes differ in what stands where none is.
"""

from __future__ import annotations

from lit_metarl.algorithms.meta_policy_gradient import MetaPolicyGradient
from lit_metarl.estimators import TMAML as TMAMLSurrogate
from lit_metarl.estimators import DiCE, LikelihoodRatio, LoadedDiCE, TayPO
from lit_metarl.optim.corrections import EMAMLCorrection, LeaveOneOut
from lit_metarl.optim.outer_updates import PPO, TRPO


class MAML(MetaPolicyGradient):
    """Model-agnostic meta-learning (Finn et al. 2017): log-likelihood surrogate, exact second order through it."""


class FOMAML(MetaPolicyGradient):
    """First-order MAML (Finn et al. 2017, section 5.2): the outer gradient is taken at the adapted parameters."""

    default_first_order = True


class TRPOMAML(MetaPolicyGradient):
    """MAML with the outer update that it was published with for RL (Finn et al. 2017, section 5.3)."""

    default_outer = TRPO()


class TRPOFOMAML(MetaPolicyGradient):
    """First-order MAML with TRPO outside, the first-order baseline of Tang et al. 2021, Fig. 1(d)."""

    default_first_order = True
    default_outer = TRPO()


class EMAML(MetaPolicyGradient):
    """E-MAML (Stadie et al. 2018): MAML that also credits the inner data for the adapted return."""

    default_correction = EMAMLCorrection()


class SGMRL(MetaPolicyGradient):
    """SG-MRL (Fallah et al. 2021, Alg. 1): the unbiased gradient of the return after a stochastic gradient step.

    Eq. 13 is right with the log-likelihood surrogate, the default: its score term already carries how the data depends
    on θ. A surrogate with the policy Hessian of Eq. 8 (:class:`~lit_metarl.estimators.DiCE`) counts that twice. For
    more than one adaptation step take :class:`~lit_metarl.optim.LinearisedLeaveOneOut` as ``correction``.
    """

    default_correction = LeaveOneOut()


class DiCEMAML(MetaPolicyGradient):
    """MAML with the DiCE surrogate (Foerster et al. 2018): unbiased Hessian without a critic, high variance.

    Rewards are as they are. The released code of ProMP and TMAML subtracts a regression on time from them before.
    """

    default_inner = DiCE()


class TRPODiCE(MetaPolicyGradient):
    """TRPO-DiCE of Tang et al. 2021: the doubly robust Hessian, as their text says; in advantages, Loaded DiCE.

    The two are equal up to a constant for ``gae_lambda`` 1, ``discounted`` and advantages as they are. By default the
    advantages are normalised and γ^t is dropped, as in the other algorithms of the comparison.
    :class:`~lit_metarl.estimators.DoublyRobust` as ``inner`` is the other form.
    """

    default_inner = LoadedDiCE()
    default_outer = TRPO()


class LVC(MetaPolicyGradient):
    """Low-variance curvature (Rothfuss et al. 2019, section 5): likelihood-ratio surrogate; TayPO-1."""

    default_inner = LikelihoodRatio()


class ProMP(MetaPolicyGradient):
    """Proximal meta-policy search (Rothfuss et al. 2019, Alg. 1): LVC with clipped outer ratios over several epochs."""

    default_inner = LikelihoodRatio()
    default_outer = PPO()


class ProMPTayPO2(MetaPolicyGradient):
    """ProMP with the second-order Taylor surrogate (Tang et al. 2021, section 5)."""

    default_inner = TayPO(order=2)
    default_outer = PPO()


class TMAML(MetaPolicyGradient):
    """Taming MAML (Liu et al. 2019): DiCE with control variates, in the form that is unbiased at orders 1 and 2.

    ``baseline`` says which: of the state, fitted per task (:class:`~lit_metarl.nn.LinearFeature`, the default); per
    task, of state and action (:class:`~lit_metarl.nn.ActionDependentLinear`); meta-learned over tasks
    (:class:`~lit_metarl.nn.MetaLearned`, Algorithm 1). The outer update takes advantages over a state value, whichever
    it is: Algorithm 2 has the control variates there, too, but that data is on-policy and only its gradient matters.
    The released surrogate is not offered: its log-probabilities and baselines are of different trajectories.
    """

    default_inner = TMAMLSurrogate()
