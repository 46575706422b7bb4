from zoo.testing import conformance

test_conformance = conformance("acme_uniform")
