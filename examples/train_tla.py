"""Train with TLA in a loop of your own: an attack, a hard negative for each anchor, and the triplet loss."""

import torch
from torch.nn.functional import cross_entropy

from trl import Linf, build_model, pgd
from trl.data import load_dataset
from trl.metric import hardest_negative, norm_penalty, pairwise_cosine, triplet_loss

torch.manual_seed(0)
digits, threat = load_dataset("digits"), Linf(0.2)
x_train, y_train = digits.train.images / 255, digits.train.labels
same_class = [(y_train == c).nonzero().squeeze(1) for c in range(10)]

model = build_model("mlp", classes=10, shape=(1, 8, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
for epoch in range(5):
    for rows in torch.randperm(len(y_train)).split(50):
        x, y = x_train[rows], y_train[rows]
        x_adv = pgd(model, x, y, threat, steps=5)  # the anchors

        positive = x_train[[int(same_class[c][torch.randint(len(same_class[c]), ())]) for c in y]]
        pool = torch.randint(len(y_train), (50,))
        with torch.no_grad():  # the negative: of another class, and the nearest to the anchor in a fresh pool
            similarity = pairwise_cosine(model.features(x_adv), model.features(x_train[pool]))
        index, found = hardest_negative(similarity, y, y_train[pool])

        a, p, n = model.features(torch.cat([x_adv, positive, x_train[pool[index]]])).chunk(3)
        triplet = triplet_loss(a, p, n, found, margin=0.05)
        loss = cross_entropy(model.head(a), y) + 0.5 * triplet.loss + 0.001 * norm_penalty(a, p, n, found, "l2")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss:.3f}, triplets that violate the margin {triplet.active:.0%}")

x, y = digits.test.images / 255, digits.test.labels
clean = (model(x).argmax(1) == y).float().mean()
robust = (model(pgd(model, x, y, threat, steps=20)).argmax(1) == y).float().mean()
print(f"clean {clean:.1%}, under PGD {robust:.1%}")
